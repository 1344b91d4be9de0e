"""What the model's step and its training spend their time in, written for the machine they run on."""
