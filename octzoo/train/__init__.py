"""Training: the task, the callbacks that Lightning lacks, and the LightningCLI over them."""
