//! Links the kernel for bare metal: nothing of the host's, at addresses of its own.

fn main() {
    let script = format!("{}/kernel.ld", std::env::var("CARGO_MANIFEST_DIR").unwrap());
    println!("cargo::rerun-if-changed={script}");
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
        println!("cargo::rustc-link-arg={argument}");
    }
    println!("cargo::rustc-link-arg=-Wl,--build-id=none,-T,{script}");
}
