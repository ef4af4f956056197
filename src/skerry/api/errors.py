"""Errors as users read them: the element, the cause and a hint, in one sentence.

Lives here: the domain's error types. Must not live here: HTTP numbers (`hub.server.status` maps types to codes) or
anything about how an error is printed (`cli.output` does that).
"""

from __future__ import annotations

from collections.abc import Sequence


class SkerryError(Exception):
    """Something went wrong.

    The first line of a subclass's docstring is its default cause. `element` names what it happened to (a field's
    path, an object, a file); `hint` says what the user can do about it.
    """

    def __init__(self, cause: str = "", *, element: str = "", hint: str = "") -> None:
        self.cause = cause or (self.__doc__ or "").splitlines()[0].rstrip(".")
        self.element = element
        self.hint = hint
        super().__init__(self.sentence)

    @property
    def sentence(self) -> str:
        """The whole message: `<element>: <cause>; <hint>`."""
        text = f"{self.element}: {self.cause}" if self.element else self.cause
        return f"{text}; {self.hint}" if self.hint else text


class NotFoundError(SkerryError):
    """Not found."""


class AlreadyExistsError(SkerryError):
    """Already exists."""


class ConflictError(SkerryError):
    """The object has been modified; read it again and repeat the change."""


class FieldConflictError(ConflictError):
    """Others have set these fields."""

    each: tuple[SkerryError, ...] = ()
    """One error for each field: who set it, and where it is."""

    @classmethod
    def of_fields(cls, conflicts: Sequence[tuple[str, str]]) -> FieldConflictError:
        """Return one error for (who set it, path) of every field."""
        if len(conflicts) == 1:
            text = f"Apply failed with 1 conflict: {conflicts[0][0]}: {conflicts[0][1]}"
        else:
            lines = "".join(f"\n- {who}: {path}" for who, path in conflicts)
            text = f"Apply failed with {len(conflicts)} conflicts:{lines}"
        error = cls(text)
        error.each = tuple(ConflictError(who, element=path) for who, path in conflicts)
        return error


class InvalidError(SkerryError):
    """Not valid."""

    problems: tuple[InvalidError, ...] = ()
    """The single problems, when this error stands for several."""

    @classmethod
    def of(cls, problems: Sequence[InvalidError]) -> InvalidError:
        """Return one error that says all problems: the only one itself, or a list with one line each."""
        if len(problems) == 1:
            return problems[0]
        lines = "".join(f"\n  - {problem.sentence}" for problem in problems)
        several = cls(f"{len(problems)} problems:{lines}")
        several.problems = tuple(problems)
        return several

    @property
    def each(self) -> tuple[InvalidError, ...]:
        """All problems one by one; the error itself when it is about a single one."""
        return self.problems or (self,)


class ForbiddenFieldError(InvalidError):
    """Must not be set here."""


class ListOptionsError(InvalidError):
    """What a list or a watch is asked for by is not valid."""

    @classmethod
    def of(cls, problems: Sequence[InvalidError]) -> ListOptionsError:
        """Return one error that says all problems, with the words of the only one, or a line for each."""
        whole = super().of(problems)
        error = cls(whole.cause, element=whole.element, hint=whole.hint)
        error.problems = tuple(problems)
        return error


class BadRequestError(SkerryError):
    """The request cannot be understood."""


class UnauthorizedError(SkerryError):
    """No valid credentials were presented."""


class ForbiddenError(SkerryError):
    """The credentials presented do not allow this."""


class DeniedError(ForbiddenError):
    """No role of the caller's allows this."""

    def __init__(self, cause: str = "", *, group: str = "", resource: str = "", name: str = "", hint: str = "") -> None:
        self.group, self.resource, self.name = group, resource, name
        whole = f"{resource}.{group}" if group else resource
        super().__init__(cause, element=f'{whole} "{name}"' if name else whole, hint=hint)

    @property
    def sentence(self) -> str:
        """The message in Kubernetes' words: `<resource> "<name>" is forbidden: <cause>`."""
        return f"{self.element} is forbidden: {self.cause}" if self.element else f"forbidden: {self.cause}"


class NamespaceTerminatingError(DeniedError):
    """Nothing is created in a namespace that is being deleted."""

    def __init__(self, namespace: str, *, group: str, resource: str, name: str) -> None:
        cause = f"unable to create new content in namespace {namespace} because it is being terminated"
        super().__init__(cause, group=group, resource=resource, name=name, hint="wait until it is gone")
        told = ForbiddenError(f"namespace {namespace} is being terminated", element="metadata.namespace")
        self.each: tuple[SkerryError, ...] = (told,)


class ExpiredError(SkerryError):
    """The requested revision has been compacted away; list again."""


class TooLargeError(SkerryError):
    """Larger than the limit."""


class UnavailableError(SkerryError):
    """Not reachable at the moment."""


class UnreachableError(UnavailableError):
    """Cannot be reached: nobody is there to be asked, for whatever it may be."""


class TimedOutError(SkerryError):
    """No answer within the time allowed."""


class IntegrityError(SkerryError):
    """The content does not match its digest, size or signature."""


class DivergedError(IntegrityError):
    """The store is another one than this hub has been using."""


class UnreadableError(IntegrityError, ValueError):
    """What is stored of it cannot be read."""


class StorageFullError(SkerryError):
    """Not enough space left."""


class UnsupportedError(SkerryError):
    """Not supported here."""


class NotAcceptableError(SkerryError):
    """In none of the forms asked for."""
