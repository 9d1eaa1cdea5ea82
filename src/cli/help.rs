//! `ringfence help`: commands, and the topics that are no command's.

use std::io::{self, IsTerminal, Write};

use clap::CommandFactory;
use clap::builder::StyledStr;

use super::args::Cli;
use crate::machine::report;
use crate::verdict::{Refusal, exit_code_table};

/// What prints a topic.
type Text = fn() -> String;

/// The topics by name.
const TOPICS: &[(&str, Text)] = &[
    ("exit-codes", exit_code_table),
    ("report", || report::SCHEMA.to_owned()),
    ("boot", || BOOT.to_owned()),
    ("gdb", || GDB.to_owned()),
];

/// The boot protocols, by the names that `--boot` takes.
const BOOT: &str = "\
The protocol is found out from the image; --boot forces one.

  flat        a flat binary; --entry real|protected|long, --load-address. A sector of 512 bytes
              that ends in 55 AA is entered as a BIOS would, at 0000:7C00
  elf         ELF32 in flat protected mode; ELF64 in long mode, the low 4 GiB identity-mapped and
              each segment also at its link address
  multiboot   multiboot 1: ELF32, ELF64, or by the header's addresses
  multiboot2  multiboot 2
  pvh         an ELF image with the Xen note for a 32-bit PVH entry
  linux       bzImage (64-bit entry, or 32-bit where it has no other) and vmlinux

--dry-run shows what an image is found to be, and the state it is entered in. The state that each
protocol promises is documented in the library's `boot` module, with its source.
";

/// The debugger.
const GDB: &str = "\
  ringfence run kernel.elf --gdb unix:/tmp/gdb --gdb-wait
  gdb kernel.elf -ex 'target remote /tmp/gdb' -ex 'break main' -ex continue

With --gdb-wait the guest's first instruction waits for gdb's `continue`; without, gdb may come at any
time, and the guest stops when it does. Each vCPU is a thread.

The registers are those of x86-64 in every mode. RIP is shown as a linear address, so that breakpoints
work in 16-bit code too; gdb disassembles as 64-bit code whatever the mode. `hbreak` for code that is
not in memory yet. A watchpoint takes one of four debug registers (more if it is wide or not aligned).

  monitor walk ADDRESS      the page tables' entries on the way of an address
  monitor cpu               mode, segments, tables, control registers
  monitor exits             exits by kind, and accesses that nothing claimed
  monitor devices           devices and their addresses
  monitor physical on|off   take gdb's addresses as guest-physical
  monitor reset             `continue` then starts the image again
  monitor help              this, and what this KVM cannot do

A guest that dies stops first, to be looked at; `continue` then ends it. `detach`, and a gdb that quits,
is killed or loses its connection, leave no breakpoint, and the guest runs on; `kill` ends it as SIGKILL
would. The exit code is the guest's verdict in any case. --timeout goes on while the guest stands still.
Whoever can connect has the guest in his hands.
";

pub(super) fn show(topic: Option<&str>) -> u8 {
    let mut command = Cli::command();
    let Some(topic) = topic else {
        return print(&command.render_help());
    };
    if let Some((_, text)) = TOPICS.iter().find(|(name, _)| *name == topic) {
        return super::printed(io::stdout().write_all(text().as_bytes()));
    }
    command.build();
    match command.find_subcommand_mut(topic) {
        Some(command) => print(&command.render_long_help()),
        None => {
            let topics: Vec<_> = TOPICS.iter().map(|(name, _)| *name).collect();
            super::tell(format_args!(
                "there is no help on {topic:?}; there is on run, guests, doctor, {}",
                topics.join(", ")
            ));
            super::code(Refusal::Usage)
        }
    }
}

/// In colour on a terminal only.
fn print(help: &StyledStr) -> u8 {
    let mut out = io::stdout();
    let written =
        if out.is_terminal() { write!(out, "{}", help.ansi()) } else { write!(out, "{help}") };
    super::printed(written)
}
