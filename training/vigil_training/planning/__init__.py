"""Memory and step estimates."""
