"""Raw data of other people's formats, read and written as a dataset folder (``PREPARE.md``)."""

__all__: list[str] = []
