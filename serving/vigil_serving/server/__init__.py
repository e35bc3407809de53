"""``vigil serve``: a bundle behind HTTP, for trying out and for small traffic; torch is never imported."""
