"""YAML files with strict types: trees that know their lines, and errors with file, line, key and the nearest valid value."""
