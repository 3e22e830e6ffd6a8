"""`distillctl serve`: a run's student behind OpenAI's chat completions. Needs the extra `serve`."""
