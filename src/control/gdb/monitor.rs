//! The `monitor` commands: one table.

use std::fmt::Write as _;

use super::describe;
use super::target::Guest;
use crate::machine::debug::Space;

/// A command: its name, its arguments, what it does in words and in fact.
struct Command {
    name: &'static str,
    arguments: &'static str,
    about: &'static str,
    run: fn(&mut Guest, &str) -> String,
}

const COMMANDS: &[Command] = &[
    Command { name: "help", arguments: "", about: "this list", run: help },
    Command {
        name: "walk",
        arguments: "ADDRESS",
        about: "the page tables' entries on the way of a linear address",
        run: walk,
    },
    Command {
        name: "cpu",
        arguments: "",
        about: "mode, segments, tables and control registers of this thread's vCPU",
        run: |guest, _| describe::system(&guest.debugger, guest.cpu),
    },
    Command {
        name: "exits",
        arguments: "",
        about: "exits by kind, and accesses that nothing claimed",
        run: exits,
    },
    Command { name: "devices", arguments: "", about: "devices and their addresses", run: devices },
    Command {
        name: "physical",
        arguments: "on|off",
        about: "take gdb's addresses as guest-physical, past the page tables",
        run: physical,
    },
    Command {
        name: "reset",
        arguments: "",
        about: "with the next `continue` the image starts again, and stops at its first instruction",
        run: reset,
    },
];

/// The answer to a command, as text.
pub(super) fn answer(guest: &mut Guest, line: &str) -> String {
    let (name, arguments) =
        line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
    match COMMANDS.iter().find(|command| command.name == name) {
        Some(command) => (command.run)(guest, arguments.trim()),
        None => format!("there is no command {name:?}; these there are:\n{}", help(guest, "")),
    }
}

fn help(guest: &mut Guest, _: &str) -> String {
    let mut text = String::new();
    for Command { name, arguments, about, .. } in COMMANDS {
        let _ = writeln!(text, "{:<16} {about}", format!("{name} {arguments}"));
    }
    text + &describe::limits(guest.debugger.limits())
}

/// A number as gdb prints them.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn walk(guest: &mut Guest, arguments: &str) -> String {
    let Some(linear) = number(arguments) else {
        return "walk needs an address, as a number: walk 0x100000\n".to_owned();
    };
    match guest.debugger.walk(guest.cpu, linear) {
        Some(walk) => describe::walk(&walk),
        None => "the vCPU does not answer\n".to_owned(),
    }
}

fn exits(guest: &mut Guest, _: &str) -> String {
    let counts = guest.debugger.counts();
    let mut text = String::new();
    for (kind, count) in counts.exits() {
        let _ = writeln!(text, "{kind:<16} {count}");
    }
    let _ = writeln!(text, "{:<16} {}", "unclaimed", counts.unclaimed_total());
    for site in counts.sites() {
        let kind = site.kind.name();
        let _ = writeln!(
            text,
            "  {kind} of {:#x}: {}, first at rip {:#x}",
            site.address, site.count, site.rip
        );
    }
    text
}

fn devices(guest: &mut Guest, _: &str) -> String {
    let mut text = String::new();
    for device in guest.debugger.devices() {
        let last = device.base + device.len - 1;
        let gsi = device.gsi.map(|gsi| format!(" gsi {gsi}")).unwrap_or_default();
        let _ =
            writeln!(text, "{:<18} {} {:#x}-{last:#x}{gsi}", device.name, device.bus, device.base);
    }
    text
}

fn physical(guest: &mut Guest, arguments: &str) -> String {
    guest.space = match arguments {
        "on" => Space::Physical,
        "off" => Space::Linear,
        _ => return "physical on, or physical off\n".to_owned(),
    };
    match guest.space {
        Space::Physical => "addresses are guest-physical\n".to_owned(),
        Space::Linear => "addresses go through the page tables\n".to_owned(),
    }
}

fn reset(guest: &mut Guest, _: &str) -> String {
    guest.debugger.reset();
    "`continue` starts the image again, and stops before its first instruction\n".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_that_gdb_prints() {
        assert_eq!((number("0x1F"), number("31"), number("1f")), (Some(31), Some(31), None));
    }
}
