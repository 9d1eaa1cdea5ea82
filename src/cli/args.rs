//! Exactly what may be typed: clap's structs, and nothing that they lead to.

use std::os::unix::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::test_args::{RunnerArgs, TestArgs, WorkerArgs};
use crate::boot::Protocol;
use crate::config::{self, AutopsyLevel, Description, OnHalt, OnReset};
use crate::control::gdb;
use crate::control::protocol::Command as ControlCommand;
use crate::inspect::watch::{Filter, Format, TraceStyle};
use crate::irq::Irqchip;
use crate::x86::{Mode, Model};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const AFTER: &str = "\
Examples:
  ringfence run @hello-long                 one of the guests that ringfence carries
  ringfence run kernel.elf --timeout 10s    a kernel, for ten seconds at most
  ringfence run bzImage --cmdline 'console=ttyS0' --memory 1G
  ringfence run boot.bin --report -         a boot sector; the verdict as JSON

The exit code is the verdict: see `ringfence help exit-codes`.";

/// Run any bare-metal x86 guest on KVM, and get an honest verdict.
#[derive(Debug, Parser)]
#[command(name = "ringfence", version, styles = STYLES, after_help = AFTER)]
#[command(
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

// Only the command that is asked for is built: of a short run the rest took a tenth.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(super) enum Command {
    /// Run an image in a VM of its own
    Run(Box<RunArgs>),
    /// Run many tests, each in a VM of its own, and report on them
    Test(Box<TestArgs>),
    /// Run a kernel that cargo has built, as `runner` in .cargo/config.toml
    TestRunner(Box<RunnerArgs>),
    /// What runs the tests of `test`
    #[command(hide = true)]
    TestWorker(WorkerArgs),
    /// List the guests that ringfence carries
    Guests(GuestsArgs),
    /// Check this host, and say what to do about each finding
    Doctor(DoctorArgs),
    /// Ask a machine that runs with --control what it does, or steer it
    Control(ControlArgs),
    /// Find out what a guest on this host sees of the host, instruction by instruction
    Audit(AuditArgs),
    /// Show help on a command, or on a topic: exit-codes, report, boot, gdb, cpu, control,
    /// coverage, audit-report
    Help {
        /// A command or a topic
        topic: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct GuestsArgs {
    /// Only this one, in full
    pub(super) name: Option<String>,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "The exit code is 0 where guests can run, else 77. Nothing is changed.")]
pub(super) struct DoctorArgs {
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
    /// KVM's device node
    #[arg(long, value_name = "PATH", default_value = "/dev/kvm")]
    pub(super) kvm: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "See `ringfence help control`.")]
pub(super) struct ControlArgs {
    /// The machine's socket, as it was given to --control
    #[arg(value_name = "PATH", value_parser = socket_or_path)]
    pub(super) socket: PathBuf,
    /// status (what it does), stats (what its exits went into so far), stop, pause or resume
    #[arg(value_name = "COMMAND", default_value = "status", value_parser = named::<ControlCommand>)]
    pub(super) command: ControlCommand,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Runs guests of ringfence's own, which execute sensitive and privileged instructions, and for comparison \
innocuous ones, in each mode and ring, and compares what they see with what the host shows itself. The \
host is not changed. Not among them: HRESET, MCOMMIT, VMFUNC, SYSRET outside 64-bit code, and what only SGX's \
enclaves, Key Locker, WAITPKG, CET, FRED, user interrupts, TDX, SEV-SNP and the MSR lists have.

The exit code is 0 where a guest saw nothing of the host's, 1 where it did, 77 without KVM. --explain and \
--compare end with 0. The JSON's schema: `ringfence help audit-report`; --compare --json is a list of \
{what, first, second}.")]
pub(super) struct AuditArgs {
    /// Only this instruction: what it does, why it is sensitive, what this host did with it
    #[arg(long, value_name = "NAME", conflicts_with_all = ["json", "html", "compare"])]
    pub(super) explain: Option<String>,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Write a page with the machine drawn as layers, and the findings on it; to standard output (-) in
    /// place of the tables
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// Show what differs between two audits, as --json has written them; runs nothing
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], conflicts_with = "html")]
    pub(super) compare: Vec<PathBuf>,
    /// Say nothing of what is being tried
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// KVM's device node
    #[arg(long, value_name = "PATH", default_value = "/dev/kvm")]
    pub(super) kvm: PathBuf,
}

/// What to do without KVM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum IfNoKvm {
    /// Fail with exit code 77
    #[default]
    Fail,
    /// Say so, and exit with 0
    Skip,
}

/// How a verdict becomes an exit code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum ExitCodes {
    /// The table of `ringfence help exit-codes`
    #[default]
    Ringfence,
    /// (code << 1) | 1 for a debug exit, as QEMU's isa-debug-exit; else the table
    Qemu,
}

/// How a trace is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TraceFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Args)]
#[command(after_help = "On a terminal, Ctrl-A x ends the machine, Ctrl-A Ctrl-A sends a Ctrl-A.")]
pub(super) struct RunArgs {
    /// The image: a flat binary, an ELF, multiboot 1 or 2, PVH or Linux image, or @NAME for a
    /// guest that ringfence carries
    pub(super) image: Option<PathBuf>,

    /// Read a machine description (TOML, or JSON if the name ends in .json); what is typed here
    /// overrides it
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    pub(super) config: Option<PathBuf>,
    /// RAM: a number with K, M or G [default: 128M]
    #[arg(short, long, value_name = "SIZE", value_parser = checked(config::parse_size), help_heading = "Machine")]
    memory: Option<String>,
    /// Number of vCPUs; all but the first wait for INIT and SIPI [default: 1]
    #[arg(short, long, value_name = "N", help_heading = "Machine")]
    cpus: Option<u32>,
    /// What of the processor the guest sees: a model (max, or a psABI level x86-64-v1 to -v4), and
    /// changes to it. As in max,-smap or x86-64-v2,vendor=GenuineIntel,+x2apic; see `ringfence
    /// help cpu` [default: max, all that KVM offers]
    #[arg(long, value_name = "MODEL,...", allow_hyphen_values = true, value_parser = checked(str::parse::<Model>), help_heading = "Machine")]
    cpu: Option<String>,
    /// Interrupt controllers in KVM: none, split (local APICs) or full (with I/O APIC, PICs and
    /// PIT) [default: none for flat and ELF images, else full]
    #[arg(long, value_name = "KIND", value_parser = irqchip, help_heading = "Machine")]
    irqchip: Option<Irqchip>,
    /// COM1 and the debug console: stdio, file:PATH or null [default: stdio]
    #[arg(long, value_name = "TARGET", value_parser = checked(str::parse::<config::SerialTarget>), help_heading = "Machine")]
    serial: Option<String>,
    /// KVM's device node [default: /dev/kvm]
    #[arg(long, value_name = "PATH", help_heading = "Machine")]
    kvm: Option<PathBuf>,

    /// The guest's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Boot")]
    cmdline: Option<String>,
    /// A file for the guest, with its arguments (repeatable)
    #[arg(long = "module", value_name = "FILE[,ARGS]", value_parser = checked(str::parse::<config::ModuleFile>), help_heading = "Boot")]
    modules: Vec<String>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", help_heading = "Boot")]
    initrd: Option<PathBuf>,
    /// Force a boot protocol: see `ringfence help boot`
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol, help_heading = "Boot")]
    boot: Option<Protocol>,
    /// Mode in which a flat binary is entered: real, protected, long
    #[arg(long, value_name = "MODE", value_parser = mode, help_heading = "Boot")]
    entry: Option<Mode>,
    /// Where a flat binary goes [default: 0x7C00 in real mode, else 0x100000]
    #[arg(long, value_name = "ADDRESS", value_parser = checked(config::parse_address), help_heading = "Boot")]
    load_address: Option<String>,

    /// End the guest after this time: 500ms, 10s, 2m [default: none]
    #[arg(short, long, value_name = "TIME", value_parser = checked(config::parse_limit), help_heading = "Verdict")]
    timeout: Option<String>,
    /// What a guest is that halts for ever: fail or success [default: fail]
    #[arg(long, value_name = "WHAT", value_parser = on_halt, help_heading = "Verdict")]
    on_halt: Option<OnHalt>,
    /// What happens on a reset: fail, restart or success [default: fail]
    #[arg(long, value_name = "WHAT", value_parser = on_reset, help_heading = "Verdict")]
    on_reset: Option<OnReset>,
    /// End the guest (code 85) at the first access to nothing (io: ports, mmio: addresses), MSR
    /// that the processor does not have (msr), write to a read-only segment of an ELF image
    /// (text), or use of page zero (null); without a list, at any of them. Guarded are whole pages
    /// that nothing writable shares; a segment that has none is named, -v tells all ranges. No
    /// exception's stack, and no descriptor that is not yet accessed, can lie in them
    #[arg(long, value_name = "io,mmio,msr,text,null", num_args = 0..=1, require_equals = true, default_missing_value = "all", value_parser = checked(str::parse::<config::Strict>), help_heading = "Verdict")]
    strict: Option<String>,
    /// What to do without KVM
    #[arg(long, value_name = "WHAT", default_value = "fail", help_heading = "Verdict")]
    pub(super) if_no_kvm: IfNoKvm,
    /// How the verdict becomes the exit code
    #[arg(long, value_name = "HOW", default_value = "ringfence", help_heading = "Verdict")]
    pub(super) exit_code: ExitCodes,
    /// Write a JSON record of the run to a file, or - for standard output
    #[arg(long, value_name = "FILE", help_heading = "Verdict")]
    pub(super) report: Option<PathBuf>,

    /// Let gdb debug the guest: tcp:HOST:PORT (port 0: a free one) or unix:PATH; see `ringfence
    /// help gdb`
    #[arg(long, value_name = "ADDRESS", help_heading = "Debugger")]
    pub(super) gdb: Option<gdb::Address>,
    /// Wait for gdb before the guest's first instruction
    #[arg(long, requires = "gdb", help_heading = "Debugger")]
    pub(super) gdb_wait: bool,
    /// Let others ask and steer the machine while it runs, over a Unix socket: unix:PATH; see
    /// `ringfence help control`
    #[arg(long, value_name = "ADDRESS", value_parser = socket, help_heading = "Explain")]
    pub(super) control: Option<PathBuf>,
    /// What to find out about a guest that died: off, fast (what is left of it), full (on AMD-V
    /// run it a second time, because a triple fault leaves no registers there) or auto (full,
    /// with a second run only where the first took less than 2 s) [default: auto]
    #[arg(long, value_name = "LEVEL", value_parser = autopsy, help_heading = "Autopsy")]
    autopsy: Option<AutopsyLevel>,
    /// An ELF file with symbols of the guest's, and what to add to its addresses (repeatable);
    /// those of the image itself are known
    #[arg(long, value_name = "FILE[,OFFSET]", value_parser = checked(str::parse::<config::SymbolFile>), help_heading = "Autopsy")]
    symbols: Vec<String>,
    /// Write a dead guest's memory and registers to a regular file, which gdb opens
    #[arg(long, value_name = "FILE", help_heading = "Autopsy")]
    core: Option<PathBuf>,

    /// Write every exit of the guest as a line to a file, or - for standard output: kind, port,
    /// address or MSR, value, RIP
    #[arg(long, value_name = "FILE", help_heading = "Explain")]
    pub(super) trace: Option<PathBuf>,
    /// Lines for people or for machines [default: json if the file's name ends in .jsonl]
    #[arg(long, value_name = "HOW", requires = "trace", help_heading = "Explain")]
    trace_format: Option<TraceFormat>,
    /// Only exits that one of these fits: KIND, KIND:NUMBER or KIND:FIRST-LAST, separated by
    /// commas; pio, mmio and msr are both of their kinds. As in pio_out:0x3f8-0x3ff,mmio
    #[arg(long, value_name = "TERMS", requires = "trace", value_parser = str::parse::<Filter>, help_heading = "Explain")]
    trace_filter: Option<Filter>,
    /// With the time of each exit, in seconds from the start (reading it slows exits down)
    #[arg(long, requires = "trace", help_heading = "Explain")]
    trace_time: bool,
    /// At the end, print what the guest's exits went into: by kind, by port, address and MSR, by
    /// function, and KVM's own counters; with --report it is in the record too
    #[arg(long, help_heading = "Explain")]
    pub(super) stats: bool,
    /// Write where the guest's time goes, for a flame graph: folded stacks, one a line. Sampled a
    /// thousand times a second; callers are found by frame pointers; a processor that is halted or not started is
    /// [idle]
    #[arg(long, value_name = "FILE", help_heading = "Explain")]
    pub(super) profile: Option<PathBuf>,
    /// Write the counters of a guest that was compiled for coverage, for llvm-profdata and llvm-cov;
    /// see `ringfence help coverage`
    #[arg(long, value_name = "FILE", help_heading = "Explain")]
    pub(super) coverage: Option<PathBuf>,

    /// Print the resolved machine, its memory map and the entry state; run nothing
    #[arg(long, help_heading = "Output")]
    pub(super) dry_run: bool,
    /// With --dry-run: as JSON
    #[arg(long, requires = "dry_run", help_heading = "Output")]
    pub(super) json: bool,
    /// Say what was found and done (-vv: more)
    #[arg(short, long, action = clap::ArgAction::Count, help_heading = "Output")]
    pub(super) verbose: u8,
    /// Say nothing of a verdict that is no error of ringfence's own
    #[arg(short, long, conflicts_with = "verbose", help_heading = "Output")]
    pub(super) quiet: bool,
}

impl RunArgs {
    /// How the trace is written.
    pub(super) fn trace_style(&self) -> TraceStyle {
        let is_jsonl = |path: &PathBuf| path.extension().is_some_and(|end| end == "jsonl");
        let format = match self.trace_format {
            Some(TraceFormat::Text) => Format::Text,
            Some(TraceFormat::Json) => Format::Json,
            None if self.trace.as_ref().is_some_and(is_jsonl) => Format::Json,
            None => Format::Text,
        };
        let filter = self.trace_filter.clone().unwrap_or_default();
        TraceStyle { format, filter, time: self.trace_time }
    }

    /// What was typed of the machine itself.
    pub(super) fn description(&self) -> Description {
        Description {
            image: self.image.clone(),
            memory: self.memory.clone(),
            cpus: self.cpus,
            cpu: self.cpu.clone(),
            cmdline: self.cmdline.clone(),
            modules: (!self.modules.is_empty()).then(|| self.modules.clone()),
            initrd: self.initrd.clone(),
            boot: self.boot,
            entry: self.entry,
            load_address: self.load_address.clone(),
            irqchip: self.irqchip,
            serial: self.serial.clone(),
            timeout: self.timeout.clone(),
            on_halt: self.on_halt,
            on_reset: self.on_reset,
            strict: self.strict.clone(),
            kvm: self.kvm.clone(),
            autopsy: self.autopsy,
            symbols: (!self.symbols.is_empty()).then(|| self.symbols.clone()),
            core: self.core.clone(),
        }
    }
}

/// Checks a value here, where the mistake is one of usage, and keeps its text.
pub(super) fn checked<T>(
    parse: impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static,
) -> impl Fn(&str) -> Result<String, String> + Clone + Send + Sync + 'static {
    move |text| parse(text).map(|_| text.to_owned())
}

/// A name that serde knows: the same in a description file and on the command line.
fn named<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    let name = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text);
    T::deserialize(name).map_err(|e| e.to_string())
}

/// `unix:PATH`, a path that a socket can have.
fn socket(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix:") {
        Some("") | None => Err("it is not unix:PATH".to_owned()),
        Some(path) => match SocketAddr::from_pathname(path) {
            Ok(_) => Ok(path.into()),
            Err(_) => Err("a socket's path has at most 107 bytes, none of them zero".to_owned()),
        },
    }
}

/// The same, or the path alone.
fn socket_or_path(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix:").unwrap_or(text);
    socket(&format!("unix:{path}"))
}

fn irqchip(text: &str) -> Result<Irqchip, String> {
    named(text)
}

fn protocol(text: &str) -> Result<Protocol, String> {
    named(text)
}

fn mode(text: &str) -> Result<Mode, String> {
    named(text)
}

fn on_halt(text: &str) -> Result<OnHalt, String> {
    named(text)
}

fn autopsy(text: &str) -> Result<AutopsyLevel, String> {
    named(text)
}

fn on_reset(text: &str) -> Result<OnReset, String> {
    named(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn control_sockets_have_paths() {
        assert_eq!(socket("unix:/run/x"), Ok("/run/x".into()));
        assert_eq!(socket_or_path("unix:/run/x"), socket_or_path("/run/x"));
        let long = format!("unix:{}", "x".repeat(108));
        for bad in ["", "unix:", "tcp:localhost:1", "/run/x", &long] {
            assert!(socket(bad).is_err(), "{bad}");
        }
        assert!(socket_or_path("").is_err());
    }

    #[test]
    fn names_are_those_of_the_description_file() {
        assert_eq!(protocol("multiboot2"), Ok(Protocol::Multiboot2));
        assert_eq!(mode("long"), Ok(Mode::Long));
        assert!(irqchip("some").unwrap_err().contains("split"));
    }
}
