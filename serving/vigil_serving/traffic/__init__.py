"""Traffic log: decisions of a server, of `vigil score` or of Triton as Parquet by day; :mod:`vigil_monitoring.traffic` reads it.

Needs pyarrow (the extra ``vigil[score]``).
"""
