"""Agreement of reviewers, the truth that their answers point to, and their accuracy; suspected errors of labels."""
