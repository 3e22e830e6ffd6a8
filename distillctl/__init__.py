"""distillctl: distil a bounded language-model task into a small student, and learn whether it can take over."""
