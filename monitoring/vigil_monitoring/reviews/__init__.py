"""Reviews: queues out to reviewers, their decisions in, and the local page on which they answer."""
