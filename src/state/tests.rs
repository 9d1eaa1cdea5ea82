use super::*;

/// A state of every kind, with values that nothing shares.
fn serial() -> Serial {
    Serial {
        baud_divisor_low: 1,
        baud_divisor_high: 2,
        interrupt_enable: 3,
        interrupt_identification: 4,
        line_control: 5,
        line_status: 0x60,
        modem_control: 7,
        modem_status: 8,
        scratch: 9,
        received: b"received".to_vec(),
        enabled: 10,
        empty_pending: true,
    }
}

fn cpu() -> Cpu {
    Cpu {
        regs: vec![1; 3],
        sregs: vec![2; 3],
        events: vec![3; 3],
        xsave: vec![4; 3],
        xcrs: vec![5; 3],
        debugregs: vec![6; 3],
        msrs: vec![Msr { index: 0x10, value: u64::MAX }, Msr { index: 0xC000_0102, value: 7 }],
        lapic: Some(vec![8; 3]),
        mp_state: Some(1),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn states_come_back_as_they_were() {
    assert_eq!(decode(&encode(&serial())), Ok(serial()));
    assert_eq!(decode(&encode(&cpu())), Ok(cpu()));
    let bare = Cpu { lapic: None, mp_state: None, ..cpu() };
    assert_eq!(decode(&encode(&bare)), Ok(bare));
    let next =
        I8042 { status: 1, output: 2, next: I8042Next::Ram(3), output_port: 4, ram: [5; 32] };
    assert_eq!(decode(&encode(&next)), Ok(next));
}

/// The encoding itself: a number that changes its meaning would change this.
#[test]
fn the_encoding_stays() {
    assert_eq!(
        hex(&encode(&serial())),
        "8c0102030405186007080948726563656976656 40af5".replace(' ', "")
    );
    let cmos = encode(&Cmos { index: 0x0F, bytes: [0xA5; 128] });
    assert_eq!(hex(&cmos[..5]), "820f5880a5");
}

#[test]
fn other_bytes_are_refused() {
    for bytes in
        [&b""[..], b"\x00", b"\xff\xff\xff", b"\x82\x00", b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff"]
    {
        assert!(decode::<Cmos>(bytes).is_err(), "{bytes:?}");
        assert!(decode::<Cpu>(bytes).is_err(), "{bytes:?}");
    }
}

/// A field that an earlier version does not know is left out, and one that it did not write
/// is only missed where it has no other value.
#[test]
fn later_versions_may_add_fields() {
    #[derive(minicbor::Encode)]
    struct Later {
        #[n(0)]
        code: u8,
        #[n(7)]
        more: u64,
    }
    assert_eq!(decode(&encode(&Later { code: 3, more: 9 })), Ok(Post { code: 3 }));
}
