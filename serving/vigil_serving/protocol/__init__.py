"""What the server and Triton share: request errors and strict JSON."""
