"""What checks the package's signatures in the tests."""

from beartype import beartype
from beartype.roar import BeartypeDecorHintPepUnsupportedException


def typechecker(function):
    """`beartype`, less what it cannot read: a generic NamedTuple such as `Solution[Z]`.

    Arguments and result are checked apart, so that a result it cannot read costs no argument.
    """
    try:
        return beartype(function)
    except BeartypeDecorHintPepUnsupportedException:
        return function
