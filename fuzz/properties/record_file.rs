//! Whatever stands in a file of records, what is read is a part of what was written.
//!
//! An input is a file as it is, or, when it begins with `lines `, lines of JSON that are put into
//! a file as records with sound checksums, after two numbers: at which byte that file is damaged,
//! and how.
//!
//! - The undamaged beginning is read to the same records by itself, and so is each part of it, as
//!   far as it goes; what is added behind it is read as well.
//! - Records that were read can be written, and are read back as they were.
//! - Of a file of sound records with one damaged byte, every record in front of the damage is
//!   read, and nothing that was not written.
//! - What all of them amount to can be said in fewer records, which amount to the same.

use supervisor_rs::{
    journal::frame::{Damage, Scan, encode, header, scan},
    reconcile::{
        memory::Memory,
        record::{Record, Store},
    },
};

/// At how many places a file is cut.
const CUTS_MAX: usize = 64;

/// Panics when one of the properties does not hold.
pub fn holds(bytes: &[u8]) {
    match bytes.strip_prefix(b"lines ") {
        Some(script) => lines_hold(script),
        None => file_holds(bytes),
    }
}

fn file_holds(bytes: &[u8]) {
    let Ok(whole) = scan(bytes) else {
        assert!(bytes.starts_with(b"supervisor-rs journal "));
        return;
    };
    let sound = usize::try_from(whole.sound_len).expect("a length in memory");
    assert!(sound <= bytes.len());
    match whole.damage {
        Damage::None => assert_eq!(sound, bytes.len()),
        Damage::TornTail { bytes: torn } => {
            assert!(torn > 0);
            assert_eq!(whole.sound_len + torn, bytes.len() as u64);
        }
        Damage::Corrupt { at, spots } => {
            assert!(spots > 0 && at >= whole.sound_len);
        }
    }
    let beginning = read(&bytes[..sound]);
    assert_eq!(beginning.damage, Damage::None);
    assert!(whole.records.starts_with(&beginning.records));
    for cut in (0..sound).step_by(sound / CUTS_MAX + 1) {
        let part = read(&bytes[..cut]);
        assert!(beginning.records.starts_with(&part.records), "cut at {cut}");
        assert!(
            !matches!(part.damage, Damage::Corrupt { .. }),
            "cut at {cut}"
        );
    }
    if sound > 0 {
        let mut longer = bytes[..sound].to_vec();
        encode(&Record::Closed, &mut longer).expect("a short record");
        let longer = read(&longer);
        assert_eq!(longer.records.last(), Some(&Record::Closed));
        assert_eq!(longer.records.len(), beginning.records.len() + 1);
    }
    let again = read(&file(&whole.records));
    assert_eq!(again.damage, Damage::None);
    assert_eq!(again.records, whole.records);
    amounts_to_the_same(&whole.records);
}

/// A file that the project itself would have written.
fn read(bytes: &[u8]) -> Scan {
    scan(bytes).expect("no newer format")
}

fn file(records: &[Record]) -> Vec<u8> {
    let mut bytes = header();
    for record in records {
        encode(record, &mut bytes).expect("a record that was read");
    }
    bytes
}

fn amounts_to_the_same(records: &[Record]) {
    let fold = |records: &[Record]| {
        let mut memory = Memory::default();
        for record in records {
            memory.apply(record);
        }
        memory
    };
    let shortest = |memory: &Memory| {
        let stores = [Store::Runtime, Store::State];
        let both = stores.map(|store| memory.records(store));
        for (store, records) in stores.iter().zip(&both) {
            assert!(records.iter().all(|record| record.store() == *store));
        }
        both.concat()
    };
    let memory = fold(records);
    let short = shortest(&memory);
    assert_eq!(shortest(&fold(&short)), short);
    let mut rebooted = memory;
    rebooted.forget_boot();
    // Of what ran in another boot only what its history has not yet is told.
    let told = rebooted.records(Store::Runtime);
    assert!(
        told.iter()
            .all(|record| matches!(record, Record::Over { .. })),
        "{told:?}"
    );
}

fn lines_hold(script: &[u8]) {
    let mut parts = script.splitn(3, |byte| *byte == b' ');
    let mut number = || {
        let text = std::str::from_utf8(parts.next()?).ok()?;
        text.parse::<usize>().ok()
    };
    let (Some(at), Some(bits)) = (number(), number()) else {
        return;
    };
    let mut bytes = header();
    let mut written = Vec::new();
    let mut ends = Vec::new();
    for line in parts
        .next()
        .unwrap_or_default()
        .split(|byte| *byte == b'\n')
    {
        // What is no record is passed over as damage, with a sound checksum as without.
        if let Ok(record) = serde_json::from_slice::<Record>(line) {
            encode(&record, &mut bytes).expect("a record that was read");
            written.push(record);
            ends.push(bytes.len());
        }
    }
    file_holds(&bytes);
    let at = at % bytes.len();
    let bits = u8::try_from(bits % 255).expect("below 255") + 1;
    bytes[at] ^= bits;
    let damaged = match scan(&bytes) {
        Ok(damaged) => damaged,
        Err(newer) => panic!("one byte makes no newer format: {newer:?}"),
    };
    let before = ends.iter().filter(|end| **end <= at).count();
    assert!(damaged.records.len() >= before);
    let mut left = written.iter();
    for record in &damaged.records {
        assert!(left.any(|written| written == record), "{record:?}");
    }
    file_holds(&bytes);
}
