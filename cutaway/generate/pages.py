"""The pool of pages that keys and values live in, without a tensor (after vLLM, Kwon et al. 2023, arXiv 2309.06180, and
nano-vllm's block manager).

A page is one of three: used by sequences, counted; cached, nobody's but with known content; free. Only full pages are
ever shared, so none is copied to be written to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Key = tuple[int, str, tuple[int, ...]]  # the page before (its serial, 0: none), the salt, the tokens
NONE_BEFORE = 0


class Pages:
    """``count`` pages of ``size`` tokens; ``free + cached + used == count`` after every call.

    What is known of a page is a key in a dictionary: looked up by hash, compared token by token, and through the serial
    of the page before it all the way to the beginning. A serial is given once, so no chain leads into a page that was
    written over.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._touched = 0  # pages below were used before; the others cost nothing, however many there are
        self._free: list[int] = []  # of the touched
        self._owners: dict[int, int] = {}  # of each used page, how many
        self._cached: dict[int, None] = {}  # least recently used first
        self._pages: dict[Key, int] = {}
        self._keys: dict[int, tuple[Key, int]] = {}  # of each known page: its key and serial
        self._serial = NONE_BEFORE

    @property
    def used(self) -> int:
        """Pages that sequences hold."""
        return len(self._owners)

    @property
    def cached(self) -> int:
        """Pages that nobody holds and whose content is known; they are taken when no page is free."""
        return len(self._cached)

    @property
    def free(self) -> int:
        """Pages of which nothing is known."""
        return self.count - self.used - self.cached

    def need(self, tokens: int) -> int:
        """Pages for so many tokens."""
        return -(-tokens // self.size)

    def known(self, tokens: Sequence[int], salt: str, *, most: int) -> tuple[list[int], Key | None]:
        """The pages that hold the beginning of ``tokens``, ``most`` of them at most, and the key of the first full
        page that is not there (None where there is no such page). They are not held: see ``hold``."""
        found: list[int] = []
        before, size = NONE_BEFORE, self.size
        for end in range(size, most + 1, size):
            key = (before, salt, tuple(tokens[end - size : end]))
            page = self._pages.get(key)
            if page is None:
                return found, key
            found.append(page)
            before = self._keys[page][1]
        return found, None

    def after(self, pages: Sequence[int]) -> int:
        """The serial of the last of some known pages."""
        return self._keys[pages[-1]][1] if pages else NONE_BEFORE

    def fits(self, many: int, *, held: Iterable[int] = ()) -> bool:
        """Whether ``many`` pages could be taken after ``held`` were held."""
        return many <= self.count - self.used - sum(page in self._cached for page in held)

    def hold(self, pages: Iterable[int]) -> None:
        """One more owner for pages that are known."""
        for page in pages:
            self._cached.pop(page, None)
            self._owners[page] = self._owners.get(page, 0) + 1

    def take(self, many: int) -> list[int] | None:
        """``many`` pages of one's own, the cached ones that were used longest ago last; None where there are not so
        many."""
        if not self.fits(many):
            return None
        return [self._take() for _ in range(many)]

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        elif self._touched < self.count:
            page, self._touched = self._touched, self._touched + 1
        else:
            page = next(iter(self._cached))
            self._forget(page)
        self._owners[page] = 1
        return page

    def learn(self, page: int, before: int, salt: str, tokens: tuple[int, ...]) -> int:
        """A used page now holds these tokens behind the page with that serial; the serial of what holds them. Where
        another page does already, that one stays the known one."""
        key = (before, salt, tokens)
        other = self._pages.get(key)
        if other is not None:
            return self._keys[other][1]
        self._serial += 1
        self._pages[key], self._keys[page] = page, (key, self._serial)
        return self._serial

    def release(self, pages: Sequence[int]) -> None:
        """One owner less. The last page of a chain goes first when room is needed: it is released first."""
        for page in reversed(pages):
            owners = self._owners[page] - 1
            if owners:
                self._owners[page] = owners
                continue
            del self._owners[page]
            if page in self._keys:
                self._cached[page] = None
            else:
                self._free.append(page)

    def clear(self) -> None:
        """Nothing that any page holds is known any more (other weights, a step that failed)."""
        for page in list(self._cached):
            self._forget(page)
            self._free.append(page)
        self._pages.clear()
        self._keys.clear()

    def _forget(self, page: int) -> None:
        self._cached.pop(page, None)
        key, _ = self._keys.pop(page)
        del self._pages[key]
