"""xhat.torch beside torch: single layers and whole training steps."""
