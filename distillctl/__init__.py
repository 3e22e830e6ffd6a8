"""distillctl: distil a bounded language-model task into a small student, and learn if it can take over."""
