"""Contrastive pre-training: encoders learn from items without labels which media belong together."""
