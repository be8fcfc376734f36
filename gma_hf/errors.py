"""What other libraries' errors say, in one sentence."""


def first_line(error: Exception) -> str:
    """What an error says, without the advice that Transformers adds."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def first_sentence(error: Exception) -> str:
    """The same, up to its first full stop and without it, to stand within a sentence."""
    return first_line(error).split(". ")[0].rstrip(" .:")
