//! Builds the guests of `guests/LIST` with the system's `cc` alone, and writes the table that
//! src/guests.rs includes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use list::{Image, Row};

#[path = "guests/list.rs"]
mod list;

/// How a kind of image is compiled and linked.
struct Recipe {
    name: &'static str,
    /// -m16, -m32 or -m64, and what else cc must know; they override `FLAGS`.
    flags: &'static [&'static str],
    /// Linker script and start-up files, in guests/lib.
    link: &'static str,
    start: &'static [&'static str],
    /// A flat file; otherwise ELF.
    flat: bool,
}

/// A flat file cannot say that it needs memory behind its bytes, where a loader may put modules.
const FLAT_BSS: &str = "-Wl,--defsym=bss_address=0x200000";

/// The same for both files, or their addresses would differ.
const WALK: &[&str] = &["-m64", "-g", "-gno-variable-location-views", "-gno-column-info"];

#[rustfmt::skip]
const RECIPES: &[Recipe] = &[
    Recipe { name: "boot16", flags: &["-m16", "-Os"], link: "boot.ld", start: &["start16.S"], flat: true },
    Recipe { name: "flat16", flags: &["-m16", "-Os", "-Wl,--defsym=load_address=0x8000"], link: "flat.ld", start: &["start16.S"], flat: true },
    Recipe { name: "flat32", flags: &["-m32", FLAT_BSS], link: "flat.ld", start: &["start32.S"], flat: true },
    Recipe { name: "flat64", flags: &["-m64", FLAT_BSS], link: "flat.ld", start: &["start64.S"], flat: true },
    Recipe { name: "elf32", flags: &["-m32"], link: "elf.ld", start: &["start32.S"], flat: false },
    Recipe { name: "elf64", flags: &["-m64"], link: "elf.ld", start: &["start64.S"], flat: false },
    Recipe { name: "debug64", flags: &["-m64", "-g1"], link: "elf.ld", start: &["start64.S"], flat: false },
    Recipe { name: "high64", flags: &["-m64", "-mcmodel=kernel"], link: "high.ld", start: &["start64.S"], flat: false },
    Recipe { name: "kernel64", flags: &["-m64", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"], link: "kernel.ld", start: &["start64.S"], flat: false },
    Recipe { name: "mb1", flags: &["-m32"], link: "elf.ld", start: &["multiboot1.S", "start32.S"], flat: false },
    Recipe { name: "mb1-flat", flags: &["-m32", "-DADDRESS_FIELDS"], link: "flat.ld", start: &["multiboot1.S", "start32.S"], flat: true },
    Recipe { name: "mb1-64", flags: &["-m64"], link: "elf.ld", start: &["multiboot1.S", "enter64.S", "start64.S"], flat: false },
    Recipe { name: "mb2", flags: &["-m32"], link: "elf.ld", start: &["multiboot2.S", "start32.S"], flat: false },
    Recipe { name: "mb2-flat", flags: &["-m32", "-DADDRESS_FIELDS"], link: "flat.ld", start: &["multiboot2.S", "start32.S"], flat: true },
    Recipe { name: "mb2-64", flags: &["-m64"], link: "elf.ld", start: &["multiboot2.S", "enter64.S", "start64.S"], flat: false },
    Recipe { name: "pvh32", flags: &["-m32"], link: "elf.ld", start: &["pvh.S", "start32.S"], flat: false },
    Recipe { name: "pvh64", flags: &["-m64"], link: "elf.ld", start: &["pvh.S", "enter64.S", "start64.S"], flat: false },
    Recipe { name: "linux32", flags: &["-m32", "-DINFO=esi"], link: "linux.ld", start: &["linux.S", "start32.S"], flat: true },
    Recipe { name: "linux64", flags: &["-m64", "-DINFO=rsi"], link: "linux.ld", start: &["linux.S", "start64.S"], flat: true },
    Recipe { name: "walk", flags: WALK, link: "walk.ld", start: &[], flat: true },
    Recipe { name: "walk-elf", flags: WALK, link: "walk.ld", start: &[], flat: false },
    Recipe { name: "vmlinux", flags: &["-m64", "-DINFO=rsi"], link: "elf.ld", start: &["vmlinux.S", "start64.S"], flat: false },
];

/// No SSE, no red zone (interrupts use the stack below RSP), nothing that needs a C library.
const FLAGS: &[&str] = &[
    "-O2",
    "-ffreestanding",
    "-fno-pic",
    "-fno-pie",
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,-n", // segments need no page alignment in the file
];

fn main() {
    println!("cargo::rerun-if-changed=guests");
    if let Err(what) = build() {
        for line in what.lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let guests = PathBuf::from(env::var("CARGO_MANIFEST_DIR").unwrap()).join("guests");
    let out = PathBuf::from(env::var("OUT_DIR").unwrap());
    let text = fs::read_to_string(guests.join("LIST")).map_err(|e| format!("guests/LIST: {e}"))?;
    let rows = list::parse(&text).map_err(|what| format!("guests/LIST: {what}"))?;
    compile_all(&rows, &guests, &out)?;
    fs::write(out.join("guests.rs"), table(&rows, &out)?).map_err(|e| format!("{out:?}: {e}"))
}

fn image_path(out: &Path, name: &str) -> PathBuf {
    out.join(format!("{name}.guest"))
}

/// Compiles every image, as many at a time as there are processors.
fn compile_all(rows: &[Row], guests: &Path, out: &Path) -> Result<(), String> {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Image::Build { recipe, sources } = &row.image {
                compile(recipe, sources, guests, &image_path(out, &row.name))
                    .map_err(|what| format!("guest {}: {what}", row.name))?;
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        running.into_iter().try_for_each(|worker| worker.join().unwrap())
    })
}

fn compile(recipe: &str, sources: &[String], guests: &Path, output: &Path) -> Result<(), String> {
    let recipe = RECIPES
        .iter()
        .find(|r| r.name == recipe)
        .ok_or(format!("no recipe {recipe} in build.rs"))?;
    let lib = guests.join("lib");
    let mut cc = Command::new("cc");
    cc.args(FLAGS).args(recipe.flags).arg("-I").arg(&lib).arg("-I").arg(guests.join("include"));
    cc.arg("-T").arg(lib.join(recipe.link));
    match recipe {
        Recipe { flat: true, .. } => cc.arg("-Wl,--oformat=binary"),
        // These keep their symbols.
        Recipe { name: "debug64" | "walk-elf", .. } | Recipe { link: "kernel.ld", .. } => &mut cc,
        _ => cc.arg("-Wl,-s"),
    };
    // The same bytes wherever they are built: no path of this machine.
    cc.arg(format!("-ffile-prefix-map={}/=", guests.display()));
    cc.arg("-o").arg(output);
    cc.args(recipe.start.iter().map(|file| lib.join(file)));
    cc.args(with_library(sources.iter().map(|file| guests.join(file)).collect(), &lib)?);
    let done = cc.output().map_err(|e| {
        format!("cannot start cc: {e} (a C compiler for x86 builds the guests: install gcc)")
    })?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!("cc failed: {cc:?}\n{}", String::from_utf8_lossy(&done.stderr)))
}

/// The sources and what they need of the library: NAME.c and NAME.S for every "NAME.h" included.
fn with_library(mut sources: Vec<PathBuf>, lib: &Path) -> Result<Vec<PathBuf>, String> {
    let mut next = 0;
    while let Some(path) = sources.get(next) {
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        for line in text.lines() {
            let Some(header) = line.strip_prefix("#include \"") else { continue };
            let header = lib.join(header.trim_end_matches('"'));
            let needed = [header.clone(), header.with_extension("c"), header.with_extension("S")];
            for file in needed.into_iter().filter(|file| file.exists()) {
                if !sources.contains(&file) {
                    sources.push(file);
                }
            }
        }
        next += 1;
    }
    sources.retain(|path| path.extension() != Some("h".as_ref()));
    Ok(sources)
}

/// The Rust source of the table: one static an image, shared by its rows, and one item a row.
fn table(rows: &[Row], out: &Path) -> Result<String, String> {
    let mut images = BTreeMap::new();
    let mut statics = String::new();
    let mut items = String::new();
    for (index, row) in rows.iter().enumerate() {
        let image = match &row.image {
            Image::Of(other) => images[other.as_str()],
            Image::Build { .. } => {
                let path = image_path(out, &row.name);
                writeln!(statics, "static IMAGE_{index}: &[u8] = include_bytes!({path:?});")
                    .unwrap();
                index
            }
        };
        images.insert(row.name.as_str(), image);
        let Row { name, args, input, verdict, says, limit, small, not_on, about, image: _ } = row;
        writeln!(
            items,
            "    Guest {{ name: {name:?}, image: IMAGE_{image}, args: &{args:?}, input: {input:?}, \
             verdict: {verdict}, says: &{says:?}, limit: Duration::from_secs({limit}), \
             small: {small}, not_on: &{not_on:?}, about: {about:?} }},"
        )
        .unwrap();
    }
    Ok(format!("{statics}\n/// {DOC}\npub static GUESTS: &[Guest] = &[\n{items}];\n"))
}

const DOC: &str = "Every row of `guests/LIST`, in its order.";
