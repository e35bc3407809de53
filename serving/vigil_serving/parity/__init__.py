"""Every format compared with the trained model."""
