"""What a launch tells whoever looks on, for counters: which warps were issued what, and what they reached in memory.

    launch = Launch(kernel, grid, threads, shared_bytes, arguments, observer=counters)
    launch.run()                # all blocks, some thousand lanes at a time
    launch.run(blocks=(0, 7))   # these alone, by their number: x fastest, then y, then z

Blocks run in flights, some at a time. Within one, `warps` numbers the warps of all its blocks one after the other:
warp w is warp w % (threads // 32) of block `blocks[w // (threads // 32)]`, as `flight` has said. Instructions are
`ptx.Instruction`: their `opcode`, `source` (file, line) and `ptx_line` say which. Basic blocks are numbered as in
`kernel.blocks`, where a block's `instructions` hold the branch, barrier or return at its end, too.
"""


class Observer:
    """Told everything and keeping nothing: counters override what they count."""

    def launched(self, launch):
        """`launch.run()` begins: its kernel, grid, threads, shared_bytes and arguments are known."""

    def flight(self, blocks):
        """The next events are of the thread blocks of these numbers."""

    def block_executed(self, number, warps, lanes):
        """The basic block of this number was issued.

        Args:
            number: of `kernel.blocks`.
            warps: the numbers of the warps with any lane in it, ascending.
            lanes: how many lanes are in it, of all those warps together. A guarded instruction has fewer.
        """

    def access(self, instruction, space, is_load, addresses, width, active, warps):
        """An instruction reached memory; cp.async comes twice, as a global load and as a shared store.

        Args:
            space: "global" or "shared", also where the instruction leaves it to the address.
            addresses: int64 [warps that have any lane in it, 32] in bytes, shared ones from their block's start on.
            width: bytes of each lane, of a vector all together; of ldmatrix 16, in the lanes that give rows.
            active: bool of the same shape; the address of any other lane means nothing.
            warps: the number of each row's warp, so that a counter knows its block: int64 [rows].
        """

    def barrier(self, instruction, warps):
        """These warps came to a barrier of their block."""
