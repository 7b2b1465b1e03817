"""Examples that share a row: as few rows as can be."""

from collections.abc import Sequence


def best_fit(lengths: Sequence[int], *, room: int, slots: int) -> list[list[int]]:
    """Which examples (by number) share a row: longest first, each into the fullest row that has room for it.

    Best-fit decreasing (Johnson, 1973), in time that grows with the number of examples and not with that of rows: rows
    are kept by the room they have left, and which of these numbers occur in the bits of one integer.

    Args:
        lengths: of the examples, none above `room`.
        room: tokens of a row.
        slots: examples of a row, at most.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(room + 1)]
    occurring = 0
    for example in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[example]
        if fitting := occurring >> length:
            left = length + (fitting & -fitting).bit_length() - 1
            row = by_room[left].pop()
            if not by_room[left]:
                occurring ^= 1 << left
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(example)
        left -= length
        if len(rows[row]) < slots:
            by_room[left].append(row)
            occurring |= 1 << left
    return rows
