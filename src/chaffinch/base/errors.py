"""The errors a user can cause. Each message says what came, where, and what to do."""


class InputError(ValueError):
    """The input cannot be used; the command line exits with code 2, the app shows the message."""


class MissingEvidence(InputError):
    """A detector was asked to run without a piece of evidence that it needs.

    Args:
        slug: the detector.
        piece: the name of the missing argument of ``fit``.
        remedy: what makes that piece.
    """

    def __init__(self, slug: str, piece: str, remedy: str) -> None:
        super().__init__(f"{slug} needs {piece}, which is not there; {remedy}")
        self.slug, self.piece, self.remedy = slug, piece, remedy
