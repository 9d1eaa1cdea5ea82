//! What a machine's reset costs, by the pages that its guest wrote to and by its memory. Beside it
//! the floor: the copies of as many pages alone, from one buffer to another. The limit that is
//! kept to on kvm_pvm is 60 us and 1 us a page. Needs /dev/kvm.

use std::time::{Duration, Instant};

use ringfence::irq::Irqchip;
use ringfence::machine::{Machine, Reached};
use ringfence::{Verdict, guests};

const ROUNDS: usize = 60;
const PAGES: [usize; 5] = [0, 1, 16, 256, 4096];
const MEMORY: [u64; 3] = [32 << 20, 128 << 20, 3 << 30];

fn main() {
    println!(
        "{:<8}{:<8}{:>8}{:>12}{:>12}{:>12}",
        "irqchip", "MiB", "pages", "min us", "median us", "floor us"
    );
    for irqchip in [Irqchip::None, Irqchip::Full] {
        for memory in MEMORY {
            let guest = guests::find("reset").expect("a carried guest");
            let built = Machine::builder("reset").image_bytes(guest.image.to_vec());
            let built = built.memory(memory).irqchip(irqchip).timeout(Duration::from_secs(60));
            let mut machine = built.build().expect("a machine");
            assert_eq!(machine.run_to_ready(), Reached::Ready, "{}", machine.serial_text());
            let checkpoint = machine.checkpoint().expect("a checkpoint");
            for pages in PAGES {
                let name = if pages == 0 { "nothing".to_owned() } else { format!("pages={pages}") };
                let mut times: Vec<_> = (0..ROUNDS)
                    .map(|_| {
                        machine.set_test(&name);
                        let verdict = machine.run();
                        assert!(matches!(verdict, Verdict::Success(_)), "{verdict}");
                        let began = Instant::now();
                        machine.reset(&checkpoint).expect("a reset");
                        began.elapsed()
                    })
                    .collect();
                times.sort();
                println!(
                    "{:<8}{:<8}{pages:>8}{:>12.1}{:>12.1}{:>12.1}",
                    format!("{irqchip:?}"),
                    memory >> 20,
                    us(times[0]),
                    us(times[ROUNDS / 2]),
                    us(floor(pages))
                );
            }
        }
    }
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The fastest of some copies of this many pages.
fn floor(pages: usize) -> Duration {
    let (from, mut to) = (vec![1_u8; pages * 4096], vec![2_u8; pages * 4096]);
    let copy = || {
        let began = Instant::now();
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&mut to);
        began.elapsed()
    };
    std::iter::repeat_with(copy).take(ROUNDS).min().unwrap_or_default()
}
