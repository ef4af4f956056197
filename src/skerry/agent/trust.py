"""The device's own word on what it takes: its trust anchor, and its namespace's policy signed by the anchor's keys.

    trust.json    `core.anchor.Anchored`, 0600: atomic and fsynced before anything follows from it

Without that file the device asks for no signatures. With it nothing is fetched, laid or served that the policy does not
cover, whatever the hub says: no policy yet, an expired one, or a damaged file mean that nothing new is taken. What
serves goes on: its server is asked for its signatures again when it is started, not while it runs. No expiry counts
then, for a device that was cut off must come back after a reboot: not the policy's, and not that of a certificate
which held when the signatures were first found good. A policy whose keys a new root has left out still says what
goes on, until there is another.

Lives here: that file, and the verdict over one workload with the bundles in the cache. Must not live here: the rules
(`core.anchor`, `core.trust_policy`), how bundles get into the cache (`work`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from skerry.agent.admission import RefusedError
from skerry.agent.disk import Disk
from skerry.agent.identity import PEM_FILE
from skerry.api.errors import AlreadyExistsError, IntegrityError, InvalidError, NotFoundError, SkerryError
from skerry.api.kinds.device import TrustFacts
from skerry.api.kinds.trust_policy import MAX_ROOT_CHARACTERS, TrustTerms
from skerry.core import anchor, trust_policy
from skerry.core.anchor import Anchored, Root, SignedPolicy
from skerry.core.card import CARD_FILE, MAX_CARD_BYTES
from skerry.core.journal import Slot
from skerry.core.messages import TrustDesired, WorkloadDesired
from skerry.core.ports import Clock

log = logging.getLogger(__name__)

FILE = "trust.json"
MAX_BUNDLE_BYTES = 1024 * 1024
"""Of one signature; larger ones are not fetched."""
_NO_CARD = "none"
_HINT = "have it signed by those whom the namespace's trust policy names, or ask its owners"


@dataclass(frozen=True, slots=True)
class _Standing:
    """Anchor and policy, read."""

    root: Root
    policy: SignedPolicy


class Trust:
    """The trust of one device."""

    def __init__(self, disk: Disk, clock: Clock) -> None:
        """Read what is kept. A file that cannot be read leaves a device that takes nothing."""
        self._disk, self._clock = disk, clock
        self._state: Anchored | None = None
        self._damage = ""
        self._problem = ""
        try:
            self._state = read(disk)
        except SkerryError as error:
            self._damage = error.sentence
            log.error("trust.unreadable error=%s", error)
        self._root: Root | None = None
        self._former: _Standing | None = None
        """What serves is judged by, as long as nothing else is."""
        if self._state is not None and not self._state.namespace:
            self._state = msgspec.structs.replace(self._state, namespace=_namespace(disk))
            try:
                write(disk, self._state)
            except (SkerryError, OSError) as error:  # a disk that is full or became read-only; at the next start then
                log.error("trust.not_written error=%s", error)
        self._standing, self._why = self._read()
        self._changed = False

    @property
    def asks(self) -> bool:
        """Whether this device asks for signatures at all."""
        return self._state is not None or bool(self._damage)

    def facts(self) -> TrustFacts | None:
        """Return what the hub is told; None for a device without an anchor."""
        if not self.asks:
            return None
        standing, root = self._standing, self._root
        return TrustFacts(
            anchor=0 if root is None else root.version,
            policy=0 if standing is None else standing.policy.terms.version,
            anchor_expires_at=None if root is None else root.expires_at,
            policy_expires_at=None if standing is None else standing.policy.terms.expires_at,
            message=(self._damage or self._problem or self._why)[:1000],
        )

    def accept(self, offered: TrustDesired | None) -> None:
        """Follow what the hub hands over as far as it proves itself, durably. Raises StorageFullError, OSError.

        What is not good is told (`facts`), and changes nothing; so does an offer of nothing.
        """
        if self._state is None or offered is None:
            return
        from skerry.drivers import owner_keys  # noqa: PLC0415 - for devices with an anchor alone; the agent stays small

        after, problem = anchor.accept(self._state, offered, owner_keys.verify)
        if problem != self._problem:
            log.log(logging.WARNING if problem else logging.INFO, "trust.offered problem=%s", problem or "-")
        if after != self._state:
            self._keep(after)
            self._standing, self._why = self._read()
            self._changed = True
            log.info("trust.accepted policy_version=%d", after.policy_version)
        self._problem = problem

    def take_change(self) -> bool:
        """Return whether what is kept has changed since it was last asked; what was refused may be good now."""
        changed, self._changed = self._changed, False
        return changed

    def expect(self, desired: WorkloadDesired) -> None:
        """Refuse early what could not be taken whatever its signatures say. Raises RefusedError("Trust")."""
        standing = self._new(desired)
        if standing is None or standing.policy.terms.mode != "enforce":
            return
        terms = standing.policy.terms
        large = max((blob.size for blob in desired.signatures), default=0)
        if large > MAX_BUNDLE_BYTES:
            raise self._refused(desired, f"one of its signatures has {large} bytes")
        if desired.card is None or desired.card.size > MAX_CARD_BYTES:
            raise self._refused(desired, "found no card, which says of which model a signature is")
        if not desired.signatures or trust_policy.rule_of(terms, desired.model) is None:
            raise self._refused(desired, trust_policy.judge(terms, desired.model, [], needed=_needed(desired)).message)

    def check(self, desired: WorkloadDesired) -> datetime | None:
        """Refuse to take something new that the policy does not cover, or that it covered until it expired.

        Returns the time by which its certificates were judged; None where the policy does not cover it, and need not.
        Its bundles must be in the cache; blocks. Raises RefusedError("Trust"), IntegrityError for one that is lost.
        """
        standing = self._new(desired)
        return None if standing is None else self._judge(standing.policy.terms, desired, self._moment(standing))

    def check_slot(self, slot: Slot) -> datetime | None:
        """Refuse to start what the policy does not cover, expired or not. Returns and raises as `check`.

        Certificates are judged by the time at which they were found good, where they were: neither their end nor a
        clock that is wrong takes down what serves.
        """
        if self.asks and self._standing is None and self._former is not None:
            standing: _Standing | None = self._former
            if self._former.policy.terms.mode == "off":
                return None
        else:
            standing = self._stand(slot.desired)
        if standing is None:
            return None
        signed = slot.signed
        desired = msgspec.structs.replace(slot.desired, signatures=signed.signatures, card=signed.card)
        return self._judge(standing.policy.terms, desired, slot.verified_at or self._moment(standing))

    def vouch(self, slot: Slot) -> datetime | None:
        """Judge a slot by the signatures that its wish names, which must be in the cache, as of now.

        Returns and raises as `check`.
        """
        return self.check_slot(msgspec.structs.replace(slot, kept=None, verified_at=None))

    # --- the verdict ------------------------------------------------------------------------------------------------

    def _stand(self, desired: WorkloadDesired) -> _Standing | None:
        """Return what counts; None for a device that asks for nothing, or whose policy is off."""
        if not self.asks:
            return None
        if self._standing is None:
            raise self._refused(desired, self._damage or self._why, passing=True)
        return None if self._standing.policy.terms.mode == "off" else self._standing

    def _new(self, desired: WorkloadDesired) -> _Standing | None:
        standing = self._stand(desired)
        if standing is not None and standing.policy.terms.mode == "enforce":
            try:
                anchor.check_current(standing.root, standing.policy, self._clock.now())
            except IntegrityError as error:
                raise RefusedError("Trust", error.cause, element=error.element, hint=error.hint, passing=True) from None
        return standing

    def _moment(self, standing: _Standing) -> datetime:
        issued = standing.policy.terms.issued_at
        return max([self._clock.now(), *([issued] if issued else [])])

    def _judge(self, terms: TrustTerms, desired: WorkloadDesired, moment: datetime) -> datetime | None:
        found, failures, lost = self._verified(terms, desired, moment)
        card = desired.card.digest if desired.card is not None else _NO_CARD
        needed = _needed(desired)
        verdict = trust_policy.judge(terms, desired.model, found, needed=needed, card=card, failures=failures)
        if verdict.covered:
            verdict = self._read_card(desired, verdict, lost)
        if verdict.covered:
            return moment
        if lost and terms.mode == "enforce":  # it is fetched again; what is there may be enough meanwhile
            raise IntegrityError(f"what it was signed with is lost: {lost[0]}", element=_element(desired))
        if terms.mode == "warn":
            log.warning("trust.not_covered model_version=%s message=%s", desired.model_version, verdict.message)
            return None
        raise self._refused(desired, verdict.message)

    def _verified(
        self, terms: TrustTerms, desired: WorkloadDesired, moment: datetime
    ) -> tuple[list[trust_policy.Signed], list[str], list[str]]:
        """Return what holds, why the rest does not, and what of it is not in the cache (any more)."""
        from skerry.drivers.signing import policy  # noqa: PLC0415 - as in `accept`

        bundles, lost = [], []
        for blob in desired.signatures:
            try:
                bundles.append(self._disk.read_blob(blob, most=MAX_BUNDLE_BYTES))
            except (NotFoundError, IntegrityError) as error:
                lost.append(error.sentence)
        try:
            found, failures = policy.verify_all(bundles, terms, moment)
        except SkerryError as error:  # the policy's own keys
            found, failures = [], [error.sentence]
        return found, failures, lost

    def _read_card(
        self, desired: WorkloadDesired, verdict: trust_policy.Verdict, lost: list[str]
    ) -> trust_policy.Verdict:
        """Return the verdict with what the card says; one that is not in the cache is added to what is lost."""
        golden = desired.golden.digest if desired.golden is not None else ""
        try:
            if desired.card is None:
                raise InvalidError("is missing", element=CARD_FILE)
            raw = self._disk.read_blob(desired.card, most=MAX_CARD_BYTES)
        except (NotFoundError, IntegrityError, InvalidError) as error:
            lost.append(error.sentence)
            return trust_policy.Verdict(covered=False, message=error.sentence)
        try:
            trust_policy.check_card(
                raw,
                model=desired.model,
                version=desired.version,
                variants={desired.variant: desired.blob.digest},
                golden=golden,
            )
        except SkerryError as error:
            return trust_policy.Verdict(covered=False, message=error.sentence)
        return verdict

    def _refused(self, desired: WorkloadDesired, cause: str, *, passing: bool = False) -> RefusedError:
        told = f"{cause}; {self._problem}" if self._problem else cause
        return RefusedError("Trust", told, element=_element(desired), hint=_HINT, passing=passing)

    # --- what is kept -----------------------------------------------------------------------------------------------

    def _keep(self, state: Anchored) -> None:
        write(self._disk, state)
        self._state = state

    def _read(self) -> tuple[_Standing | None, str]:
        """Return what counts now, or why nothing does."""
        state, self._root, self._former = self._state, None, None
        if state is None:
            return None, ""
        if not state.root:
            return None, "it has no trust anchor yet"
        try:
            self._root = anchor.read_root(anchor.read(state.root, FILE))
            if not state.policy:
                self._former = _former(self._root, state)
                return None, "it has no policy signed by its trust anchor's keys yet"
            return _Standing(self._root, anchor.read_policy(anchor.read(state.policy, FILE))), ""
        except SkerryError as error:
            return None, error.sentence


def _former(root: Root, state: Anchored) -> _Standing | None:
    """Return the policy that was good until the root changed. Raises InvalidError."""
    return _Standing(root, anchor.read_policy(anchor.read(state.former, FILE))) if state.former else None


def read(disk: Disk) -> Anchored | None:
    """Return what is kept; None for a device without an anchor. Raises InvalidError when it is damaged."""
    try:
        return msgspec.json.decode(disk.read(FILE), type=Anchored)
    except NotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise InvalidError(
            f"is damaged: {str(error)[:200]}",
            element=str(disk.root / FILE),
            hint="nothing new is taken; set the anchor again with `skerry agent trust ANCHOR --replace`",
        ) from None


def write(disk: Disk, state: Anchored) -> None:
    """Make it durable. Raises StorageFullError, OSError."""
    disk.write(FILE, msgspec.json.encode(state))


def begin(disk: Disk, word: str, *, replace: bool = False, namespace: str = "") -> None:
    """Set a device's anchor as a person on the device wants it; see `plan`."""
    write(disk, plan(disk, word, replace=replace, namespace=namespace))


def plan(disk: Disk, word: str, *, replace: bool = False, namespace: str = "") -> Anchored:
    """Return what a device is to keep for the anchor that a person on it names; writes nothing.

    `word` is a file with a root, `sha256:<hex>` of what is signed of one, or `first-use` for the first that the hub
    offers. A namespace that is known stays, unless another is given; one that is not is the device's own at its next
    start. An anchor that is there gives way to nothing but a root that follows it, unless it is to be replaced: newer
    roots, policy and the version that policies must exceed would be forgotten with it.
    Raises InvalidError, IntegrityError, NotFoundError, AlreadyExistsError.
    """
    try:
        kept = read(disk)
    except InvalidError:
        if not replace:
            raise
        kept = None
    wanted = _wanted(word, namespace or (kept.namespace if kept is not None else ""))
    if kept is None or replace:
        return wanted
    return _following(msgspec.structs.replace(kept, namespace=wanted.namespace), wanted)


def _wanted(word: str, namespace: str) -> Anchored:
    if word == "first-use":
        return Anchored(namespace=namespace)
    if word.startswith("sha256:"):
        if len(word) != 71 or not set(word[7:]) <= set("0123456789abcdef"):
            raise InvalidError("is no digest", element=word[:80], hint="`skerry trust show root.json` prints it")
        return Anchored(namespace=namespace, pin=word)
    from skerry.drivers import owner_keys  # noqa: PLC0415 - as in `accept`

    sealed = anchor.read(_read_file(word), word)
    anchor.check_first(sealed, owner_keys.verify)
    return Anchored(namespace=namespace, root=anchor.write(sealed))


def _following(kept: Anchored, wanted: Anchored) -> Anchored:
    """Return what is kept once what is wanted counts too. Raises AlreadyExistsError where one excludes the other."""
    if not (wanted.root or wanted.pin):  # the first one that came, or whatever stricter was said before
        return kept
    digest = wanted.pin or anchor.digest_of(anchor.read(wanted.root, "trust anchor"))
    if not kept.root:
        if kept.pin in ("", digest):
            return wanted
        raise _kept(f"waits for trust anchor {kept.pin}")
    known = anchor.read(kept.root, FILE)
    if digest == anchor.digest_of(known):
        return kept
    version, problem, after = anchor.read_root(known).version, "", kept
    if wanted.root:
        from skerry.drivers import owner_keys  # noqa: PLC0415 - as in `accept`

        after, problem = anchor.accept(kept, TrustDesired(roots=[wanted.root]), owner_keys.verify)
    if after.root == kept.root:
        raise _kept(f"obeys trust anchor {version} already{f': {problem}' if problem else ''}")
    return after


def _kept(cause: str) -> AlreadyExistsError:
    hint = "leave the anchor out to keep it, or give --replace: newer roots and the policy are forgotten then"
    return AlreadyExistsError(cause, element="this device", hint=hint)


def _read_file(path: str) -> bytes:
    try:
        with Path(path).expanduser().open("rb") as file:
            return file.read(MAX_ROOT_CHARACTERS + 1)
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", element=path) from None


def _namespace(disk: Disk) -> str:
    """Return the namespace this device was enrolled into; from now on it stays the one whose policies count."""
    from cryptography import x509  # noqa: PLC0415 - once in an anchor's life

    subject = x509.load_pem_x509_certificate(disk.read(PEM_FILE)).subject
    units = subject.get_attributes_for_oid(x509.NameOID.ORGANIZATIONAL_UNIT_NAME)
    return str(units[0].value) if units else "default"


def _needed(desired: WorkloadDesired) -> Sequence[str]:
    """The files that a signature must be over: the model, and the samples that it is judged by."""
    return [desired.blob.digest, *([desired.golden.digest] if desired.golden is not None else [])]


def _element(desired: WorkloadDesired) -> str:
    return f"{desired.model_version} {desired.variant}"[:200]
