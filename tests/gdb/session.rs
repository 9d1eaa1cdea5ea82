//! A guest under the debugger: ringfence, the stock gdb, and the symbols.

use object::{Object, ObjectSymbol};
use ringfence::guests;

use super::common::{self, Dir, Ended, Running, wait_until};
use super::rsp::Client;

/// A command for gdb: one instruction, for certain. Where a step may come back before its
/// instruction has run ([`super::Can::steps_move`]), one steps again.
const STEP_ON: &str = "
define step-on
  set $before = $pc
  stepi
  while $pc == $before
    stepi
  end
end
";

/// A machine that waits for a debugger, or not.
pub struct Session {
    pub dir: Dir,
    pub address: String,
    running: Running,
}

impl Session {
    /// On a Unix socket, standing before its first instruction.
    #[track_caller]
    pub fn held(guest: &str) -> Self {
        Self::new(guest, "unix", &["--gdb-wait"])
    }

    /// On a Unix socket, running.
    #[track_caller]
    pub fn running(guest: &str) -> Self {
        Self::new(guest, "unix", &[])
    }

    #[track_caller]
    pub fn new(guest: &str, kind: &str, options: &[&str]) -> Self {
        let dir = Dir::new();
        let address = match kind {
            "tcp" => "tcp:127.0.0.1:0".to_owned(),
            _ => format!("unix:{}", dir.join("gdb").display()),
        };
        let run = common::ringfence(["run", guest, "--timeout", "110s", "--gdb", &address]);
        let running = options.iter().fold(run, |run, option| run.arg(option)).start();
        const LISTENS: &str = "ringfence: gdb: target remote ";
        let whole_line = |told: &str| {
            let (_, rest) = told.split_once(LISTENS)?;
            rest.split_once('\n').map(|(address, _)| address.to_owned())
        };
        let mut address = None;
        wait_until(|| {
            address = whole_line(&running.told());
            address.is_some()
        });
        let address = address.unwrap_or_else(|| panic!("it says only {:?}", running.told()));
        Self { dir, address, running }
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.address)
    }

    /// What it has written to standard error.
    pub fn told(&self) -> String {
        self.running.told()
    }

    /// Waits for the guest to print `text`.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        Self { running: self.running.says(text), ..self }
    }

    /// A stock gdb that connects and does this.
    pub fn start_gdb(&self, commands: &[&str]) -> Running {
        self.start_gdb_on(symbols(), commands)
    }

    /// The same with other symbols.
    fn start_gdb_on(&self, elf: &[u8], commands: &[&str]) -> Running {
        let elf = self.dir.file("guest.elf", elf);
        let connect = format!("target remote {}", self.address);
        let first = ["set remotetimeout 100", "set width 0", connect.as_str()];
        // One pipe, so that what it says stays in order.
        let run = common::program("sh").arg("-c").arg("exec gdb \"$@\" 2>&1").arg("gdb");
        let run = run.arg("-nx").arg("-batch");
        let run = run.arg("-x").arg(self.dir.file("step-on.gdb", STEP_ON));
        let run = run.with(|command| {
            command.env("DEBUGINFOD_URLS", "").env("HOME", self.dir.path());
        });
        let all = first.iter().chain(commands);
        all.fold(run, |run, command| run.arg("-ex").arg(command)).arg(elf).start()
    }

    /// The same to its end: all that it wrote.
    #[track_caller]
    pub fn gdb(&self, commands: &[&str]) -> String {
        self.gdb_on(symbols(), commands)
    }

    /// The same with other symbols.
    #[track_caller]
    pub fn gdb_on(&self, elf: &[u8], commands: &[&str]) -> String {
        let text = self.start_gdb_on(elf, commands).end().out();
        assert!(!text.contains("reply is too long"), "{text}");
        text
    }

    /// The machine's end, which is to be this exit code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Ended {
        self.running.end().expect(code)
    }
}

/// The ELF with the symbols of `@walk` and its relatives.
fn symbols() -> &'static [u8] {
    guests::find("walk-symbols").expect("a guest").image
}

/// The address of a symbol.
#[track_caller]
pub fn address(name: &str) -> u64 {
    let file = object::File::parse(symbols()).expect("an ELF");
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name));
    symbol.unwrap_or_else(|| panic!("no {name}")).address()
}

/// The address of the HLT between these two instructions of a flat image.
#[track_caller]
pub fn hlt(guest: &str, before: u8, behind: u8) -> u64 {
    const LOADED_AT: u64 = 0x10_0000;
    let image = guests::find(guest).expect("a guest").image;
    let at = image.windows(3).position(|bytes| bytes == [before, 0xF4, behind]);
    LOADED_AT + at.expect("a HLT") as u64 + 1
}

/// All of `wanted` stand in `text`, one after the other.
#[track_caller]
pub fn in_order(text: &str, wanted: &[&str]) {
    let mut rest = text;
    for wanted in wanted {
        let Some(at) = rest.find(wanted) else {
            panic!("no {wanted:?} (in its place) in:\n{text}")
        };
        rest = &rest[at + wanted.len()..];
    }
}
