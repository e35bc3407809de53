"""From files as people have them (a manifest beside its media, a public set's CSV) to items."""
