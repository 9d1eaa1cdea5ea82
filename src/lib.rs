//! ringfence runs any bare-metal x86 guest on KVM (VT-x, AMD-V) and gives an honest verdict.
//!
//! This page is the map of the house. The [README] says what the program does; here stands
//! how it is built, and where to add to it.
//!
//! # As a library
//! A kernel's test, as one would paste it into `tests/boot.rs`:
//!
//! ```no_run
//! use std::time::Duration;
//! use ringfence::{Machine, Verdict};
//!
//! #[test]
//! # fn shown() {}
//! fn the_kernel_boots() {
//!     let mut machine = Machine::builder("target/kernel.elf")
//!         .memory(64 << 20)
//!         .cmdline("selftest")
//!         .timeout(Duration::from_secs(10))
//!         .build()
//!         .expect("a machine");
//!     let verdict = machine.run();
//!     assert!(verdict.is_success(), "{verdict}\n{}", machine.serial_text());
//!     assert!(machine.serial_text().contains("all tests passed"));
//! }
//! ```
//!
//! # From an image to a verdict
//! `main` parses ([`cli`]) and resolves what was typed into a [`config::Config`]; that becomes
//! a [`Machine`], which runs to a [`Verdict`], which is the exit code.
//!
//! 1. [`boot`] finds out what the image is, puts it into guest memory ([`mem`]) and says in
//!    which state its protocol enters it ([`x86::CpuInit`]).
//! 2. [`machine`] makes the VM and its vCPUs ([`kvm`]), puts the devices of its platform
//!    table on the [`bus`], and starts.
//! 3. [`vcpu`] runs the guest: its instructions run on the processor itself, and what must
//!    not comes back as an exit. The run loop is one `match`, one line an exit.
//! 4. Whatever ends the machine, a device, a fatal exit, a time limit or a signal, does so
//!    by one call ([`verdict::StopLine::stop`]) with a [`Verdict`]; the first one counts.
//!
//! # Layers
//! A module imports only from layers below it, and from what its row allows;
//! `tests/layering.rs` holds the table and checks it.
//!
//! | layer | modules |
//! |---|---|
//! | 0 | [`verdict`], [`mem`], [`irq`], [`x86`], [`state`], [`guests`], [`log`]: data and facts |
//! | 1 | [`bus`], [`boot`], [`config`] |
//! | 2 | [`devices`] (never sees KVM), [`kvm`] (never sees a device; alone names kvm-ioctls) |
//! | 3 | [`vcpu`], [`inspect`] (what a guest that stands still can tell) |
//! | 4 | [`machine`] |
//! | 5 | [`control`] (the gdb stub, the control socket; speaks to machine only), [`runner`] (many machines' verdicts), [`audit`] (what a guest sees of the host; speaks to kvm, has no machine) |
//! | 6 | [`cli`] (alone names clap), `main` |
//!
//! Devices never see KVM: what they do to the outside is a parameter, so each is tested
//! without /dev/kvm.
//!
//! # Threads, and what each owns
//! * The caller of [`Machine::run`] runs the first vCPU: a machine with one needs no thread.
//! * `vcpuN`: its [`kvm::Vcpu`] and its [`bus::BusView`]s, nobody else's.
//! * `serial-in` carries serial input; it is started when the guest first looks for input.
//! * `gdb` and `control` serve their sockets, where they were asked for.
//!
//! Shared are guest memory, the bus's table, a device's own registers behind its own lock,
//! and the requests in [`vcpu::Control`]; nothing else. A vCPU is brought out of the guest by
//! a request and a signal, without a race: see `vcpu/kick.rs`.
//!
//! # Where do I add ...
//! * a device: one file in `src/devices/`, one row in `src/machine/platform.rs`;
//! * a boot protocol: one file in `src/boot/`, one row in its `PROBES`;
//! * a guest: one file in `guests/`, one row in `guests/LIST`, which is also its test;
//! * an instruction to the audit: one row in `src/audit/table.rs`, and what is expected of it in
//!   `tests/audit.table`;
//! * an exit code: one row in [`verdict::EXIT_CODES`];
//! * an option: a field of [`config::Description`], an argument in `src/cli/args.rs`.
//!
//! [README]: https://docs.rs/crate/ringfence/latest/source/README.md

#![warn(missing_docs)]

pub mod audit;
pub mod boot;
pub mod bus;
pub mod cli;
pub mod config;
pub mod control;
pub mod devices;
pub mod guests;
pub mod inspect;
pub mod irq;
pub mod kvm;
pub mod log;
pub mod machine;
pub mod mem;
pub mod runner;
pub mod state;
pub mod vcpu;
pub mod verdict;
pub mod x86;

pub use machine::Machine;
pub use verdict::Verdict;
