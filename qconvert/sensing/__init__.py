"""Which parts of a model lose accuracy when they are quantized: experiments on plans, run from where they differ."""
