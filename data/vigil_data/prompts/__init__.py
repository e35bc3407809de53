"""Prompts of guards: policy text and an item's segments as token ids; numpy only, shared by training and the runtime."""
