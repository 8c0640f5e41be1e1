# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How things end that do not end well: the one family of errors that are for the user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Problem(Exception):
    """Something that the user has to know; anything else that is raised is a mistake of this collection."""


class Refused(Problem):
    """The wish cannot be granted; nothing was changed. Its arguments are all the reasons."""

    @property
    def reasons(self) -> tuple[str, ...]:
        return self.args


class Pending(str):
    """A reason that an earlier task of the same play may see to: check mode does not refuse for it."""


class Failure(Problem):
    """Something did not do what it should. details go into the module's result."""

    def __init__(self, message: str, details: Mapping[str, Any] | None = None, **more: Any) -> None:
        super().__init__(message)
        self.details = {**(details or {}), **more}
