//! How records stand in a file: bytes to records and back, whatever happened to the bytes.
//!
//! ```text
//! file    = header record*
//! header  = "supervisor-rs journal 1 " crc32 of the text before it, 8 hex digits, "\n"
//! record  = length (u32, little-endian) crc32 of the payload (u32, little-endian) payload
//! payload = the record as JSON, `length` bytes
//! ```
//!
//! What is read back is a part of what was written, in order, never anything else:
//!
//! - A tail that was not written to its end is cut.
//! - After a damaged spot reading goes on at the next sound record. Nothing inside a payload
//!   can pass for one: a length below 16 MiB has a zero byte, and JSON text has none.
//! - Going on is safe because records are facts about one child and run each, and
//!   [`Memory::apply`](crate::reconcile::memory::Memory::apply) passes over those that make no
//!   sense; stopping at the damage would lose all that follows, live runs included.
//!
//! Every later format keeps the header's shape, so that a newer file is known as one.
//!
//! Absent on purpose: files (`folder`), and when to write (`log`).

use crate::reconcile::record::Record;

/// The format that is written, and the only one that is read.
pub const FORMAT: u32 = 1;

/// The longest payload, in bytes. Below 16 MiB, see the module's head.
pub const RECORD_LEN_MAX: usize = 8 << 20;
const _: () = assert!(RECORD_LEN_MAX < 1 << 24);

/// The most bytes that are hashed in search of sound records after damaged ones.
const RESYNC_HASHED_MAX: u64 = 512 << 20;

/// The longest header line, in bytes.
const HEADER_LEN_MAX: usize = 64;

const HEADER_START: &str = "supervisor-rs journal ";

/// How many bytes stand before each payload.
pub(super) const PREFIX_LEN: usize = 8;

/// What a file's bytes amount to.
#[derive(Debug)]
pub struct Scan {
    /// The records that are sound, in order.
    pub records: Vec<Record>,
    /// The length of the undamaged beginning, in bytes.
    pub sound_len: u64,
    /// What is wrong with the rest.
    pub damage: Damage,
}

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Damage {
    /// Nothing.
    None,
    /// Its last record was not written to its end.
    TornTail {
        /// How many bytes of it there are.
        bytes: u64,
    },
    /// Something was written and is not readable any more.
    Corrupt {
        /// Where the first damaged spot begins, in bytes from the start.
        at: u64,
        /// How many spots.
        spots: u64,
    },
}

/// A file of a format that this program does not know: it is left alone.
#[derive(Debug, PartialEq, Eq)]
pub struct Newer {
    /// Its format.
    pub found: u32,
}

/// Why a record cannot be written at all, now or later.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Such as a path that is not UTF-8.
    #[error("the record cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Over [`RECORD_LEN_MAX`].
    #[error("the record has {0} bytes, and at most {RECORD_LEN_MAX} fit")]
    TooLong(usize),
}

/// The first line of every file.
pub fn header() -> Vec<u8> {
    header_of(FORMAT).into_bytes()
}

fn header_of(format: u32) -> String {
    let text = format!("{HEADER_START}{format}");
    let crc = crc32fast::hash(text.as_bytes());
    format!("{text} {crc:08x}\n")
}

/// Adds one record to `out`; on an error nothing is added.
pub fn encode(record: &Record, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let payload = serde_json::to_vec(record)?;
    let len = match u32::try_from(payload.len()) {
        Ok(len) if payload.len() <= RECORD_LEN_MAX => len,
        Ok(_) | Err(_) => return Err(EncodeError::TooLong(payload.len())),
    };
    out.extend_from_slice(&prefix_of(len, &payload));
    out.extend_from_slice(&payload);
    Ok(())
}

/// What stands before a payload, which is not longer than [`RECORD_LEN_MAX`].
///
/// A child calls it between clone and exec: it allocates nothing, takes no lock and cannot panic.
pub(super) fn prefix(payload: &[u8]) -> [u8; PREFIX_LEN] {
    prefix_of(u32::try_from(payload.len()).unwrap_or(u32::MAX), payload)
}

fn prefix_of(len: u32, payload: &[u8]) -> [u8; PREFIX_LEN] {
    let [a, b, c, d] = len.to_le_bytes();
    let [e, f, g, h] = crc32fast::hash(payload).to_le_bytes();
    [a, b, c, d, e, f, g, h]
}

/// Reads what was added to a file: the records, and how many bytes from the start they take up.
/// It ends where something is not whole.
pub(super) fn added(bytes: &[u8]) -> (Vec<Record>, usize) {
    let (mut records, mut at) = (Vec::new(), 0);
    while let Frame::Sound { record, end } = frame_at(bytes, at) {
        records.push(*record);
        at = end;
    }
    (records, at)
}

/// Reads a whole file.
pub fn scan(bytes: &[u8]) -> Result<Scan, Newer> {
    let mut scan = Scan {
        records: Vec::new(),
        sound_len: 0,
        damage: Damage::None,
    };
    let mut at = match read_header(bytes) {
        Header::Sound { len } => len,
        Header::Newer { found } => return Err(Newer { found }),
        Header::Torn => {
            scan.damage = torn(bytes.len());
            return Ok(scan);
        }
        Header::Bad => 0,
    };
    scan.sound_len = at as u64;
    let mut hashed = 0;
    while at < bytes.len() {
        let next = match frame_at(bytes, at) {
            Frame::Sound { record, end } => {
                scan.records.push(*record);
                Some(end)
            }
            Frame::Unknown { end } => {
                scan.damaged(at);
                Some(end)
            }
            Frame::Bad => {
                let next = resync(bytes, at + 1, &mut hashed);
                let whole_so_far = scan.damage == Damage::None;
                if next.is_none() && whole_so_far && at > 0 && is_torn(&bytes[at..]) {
                    scan.damage = torn(bytes.len() - at);
                    return Ok(scan);
                }
                scan.damaged(at);
                next
            }
        };
        at = next.unwrap_or(bytes.len());
        if scan.damage == Damage::None {
            scan.sound_len = at as u64;
        }
    }
    Ok(scan)
}

impl Scan {
    fn damaged(&mut self, here: usize) {
        self.damage = match self.damage {
            Damage::None | Damage::TornTail { .. } => Damage::Corrupt {
                at: here as u64,
                spots: 1,
            },
            Damage::Corrupt { at, spots } => Damage::Corrupt {
                at,
                spots: spots + 1,
            },
        };
    }
}

fn torn(bytes: usize) -> Damage {
    match bytes {
        0 => Damage::None,
        bytes => Damage::TornTail {
            bytes: bytes as u64,
        },
    }
}

enum Header {
    Sound { len: usize },
    Newer { found: u32 },
    Torn,
    Bad,
}

fn read_header(bytes: &[u8]) -> Header {
    let start = &bytes[..bytes.len().min(HEADER_LEN_MAX)];
    let Some(line_len) = start.iter().position(|byte| *byte == b'\n') else {
        let torn = header().starts_with(start) || start.iter().all(|byte| *byte == 0);
        let whole = start.len() == bytes.len();
        return if torn && whole {
            Header::Torn
        } else {
            Header::Bad
        };
    };
    let format = std::str::from_utf8(&start[..line_len])
        .ok()
        .and_then(|line| line.strip_prefix(HEADER_START))
        .and_then(|rest| rest.split_once(' '))
        .and_then(|(format, _)| format.parse().ok());
    match format {
        Some(format) if header_of(format).as_bytes() != &start[..=line_len] => Header::Bad,
        Some(FORMAT) => Header::Sound { len: line_len + 1 },
        Some(found) if found > FORMAT => Header::Newer { found },
        Some(_) | None => Header::Bad,
    }
}

enum Frame {
    Sound {
        record: Box<Record>,
        end: usize,
    },
    /// Sound bytes, but no record that this program knows.
    Unknown {
        end: usize,
    },
    Bad,
}

fn frame_at(bytes: &[u8], at: usize) -> Frame {
    let Some((payload, crc)) = payload_at(bytes, at) else {
        return Frame::Bad;
    };
    if crc32fast::hash(payload) != crc {
        return Frame::Bad;
    }
    let end = at + PREFIX_LEN + payload.len();
    match serde_json::from_slice(payload) {
        Ok(record) => Frame::Sound { record, end },
        Err(_) => Frame::Unknown { end },
    }
}

/// The payload and its checksum, if the length makes sense.
fn payload_at(bytes: &[u8], at: usize) -> Option<(&[u8], u32)> {
    let rest = bytes.get(at..)?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    if len == 0 || len > RECORD_LEN_MAX {
        return None;
    }
    Some((rest.get(..len)?, u32::from_le_bytes(*crc)))
}

/// Whether these last bytes look like the beginning of a record, or like space that was
/// given to the file and never written.
fn is_torn(rest: &[u8]) -> bool {
    let Some((len, _)) = rest.split_first_chunk::<4>() else {
        return true;
    };
    let len = u32::from_le_bytes(*len) as usize;
    let unfinished = len <= RECORD_LEN_MAX && rest.len() < PREFIX_LEN + len;
    rest.len() < PREFIX_LEN || unfinished || rest.iter().all(|byte| *byte == 0)
}

/// Where the next sound record begins.
fn resync(bytes: &[u8], from: usize, hashed: &mut u64) -> Option<usize> {
    (from..bytes.len()).find(|at| {
        let Some((payload, crc)) = payload_at(bytes, *at) else {
            return false;
        };
        let json = matches!(
            (payload.first(), payload.last()),
            (Some(b'{'), Some(b'}')) | (Some(b'"'), Some(b'"'))
        );
        if !json || *hashed > RESYNC_HASHED_MAX {
            return false;
        }
        *hashed += payload.len() as u64;
        crc32fast::hash(payload) == crc && serde_json::from_slice::<Record>(payload).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{super::samples, *};

    fn file(records: &[Record]) -> Vec<u8> {
        let mut bytes = header();
        for record in records {
            encode(record, &mut bytes).unwrap();
        }
        bytes
    }

    /// Where each record begins, and the end.
    fn bounds(records: &[Record]) -> Vec<usize> {
        (0..=records.len())
            .map(|count| file(&records[..count]).len())
            .collect()
    }

    #[test]
    fn what_was_written_is_read_back() {
        let records = samples::one_of_each();
        let bytes = file(&records);
        let scan = scan(&bytes).unwrap();
        assert_eq!(scan.records, records);
        assert_eq!(scan.damage, Damage::None);
        assert_eq!(scan.sound_len, bytes.len() as u64);
    }

    #[test]
    fn the_format_on_disk_does_not_change_by_accident() {
        let bytes = file(&[Record::Closed]);
        assert_eq!(
            bytes,
            b"supervisor-rs journal 1 b05dd444\n\x08\0\0\0\x79\x2a\x1c\xe3\"closed\""
        );
    }

    #[test]
    fn a_file_cut_at_any_byte_yields_the_records_before_the_cut() {
        let records = samples::one_of_each();
        let bytes = file(&records);
        let bounds = bounds(&records);
        for cut in 0..bytes.len() {
            let scan = scan(&bytes[..cut]).unwrap();
            let whole = bounds.iter().rposition(|end| *end <= cut);
            let sound = whole.map_or(0, |count| bounds[count]);
            assert_eq!(scan.records, records[..whole.unwrap_or(0)], "cut at {cut}");
            assert_eq!(scan.sound_len, sound as u64, "cut at {cut}");
            assert_eq!(scan.damage, torn(cut - sound), "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_byte_costs_the_record_it_stands_in_and_no_other() {
        let records = samples::one_of_each();
        let bytes = file(&records);
        let bounds = bounds(&records);
        for at in 0..bytes.len() {
            for mask in [0x01, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] ^= mask;
                let scan = scan(&bytes).unwrap();
                let hit = bounds.iter().rposition(|start| *start <= at);
                let mut left = records.clone();
                if let Some(hit) = hit {
                    left.remove(hit);
                }
                assert_eq!(scan.records, left, "byte {at} ^ {mask:#x}");
                assert_ne!(scan.damage, Damage::None, "byte {at} ^ {mask:#x}");
                assert!(scan.sound_len <= at as u64, "byte {at} ^ {mask:#x}");
            }
        }
    }

    #[test]
    fn bytes_taken_out_of_the_middle_cost_only_the_records_they_touch() {
        let records = samples::one_of_each();
        let whole = file(&records);
        let bounds = bounds(&records);
        for from in (bounds[1]..bounds[4]).step_by(7) {
            let mut bytes = whole.clone();
            bytes.drain(from..from + 5);
            let scan = scan(&bytes).unwrap();
            assert!(matches!(scan.damage, Damage::Corrupt { .. }), "from {from}");
            assert!(scan.records.ends_with(&records[5..]), "from {from}");
            assert_eq!(scan.records[0], records[0], "from {from}");
        }
    }

    #[test]
    fn every_spot_of_damage_is_counted_and_the_first_is_named() {
        let records = samples::one_of_each();
        let mut bytes = file(&records);
        let bounds = bounds(&records);
        bytes[bounds[1] + PREFIX_LEN] ^= 1;
        bytes[bounds[4] + PREFIX_LEN] ^= 1;
        let scan = scan(&bytes).unwrap();
        let at = bounds[1] as u64;
        assert_eq!(scan.damage, Damage::Corrupt { at, spots: 2 });
        assert_eq!(scan.sound_len, at);
        assert_eq!(scan.records.len(), records.len() - 2);
    }

    #[test]
    fn space_that_was_never_written_is_a_torn_tail() {
        let records = samples::one_of_each();
        let mut bytes = file(&records);
        bytes.extend([0; 4096]);
        let scan = scan(&bytes).unwrap();
        assert_eq!(scan.records, records);
        assert_eq!(scan.damage, Damage::TornTail { bytes: 4096 });
    }

    #[test]
    fn a_newer_format_is_told_from_a_damaged_header() {
        let mut newer = header_of(2).into_bytes();
        newer.extend(b"who knows");
        assert_eq!(scan(&newer).unwrap_err(), Newer { found: 2 });
        let forged = header_of(1).replace('1', "2");
        let read = scan(forged.as_bytes()).unwrap();
        assert!(matches!(read.damage, Damage::Corrupt { at: 0, .. }));
        let ancient = scan(header_of(0).as_bytes()).unwrap();
        assert!(matches!(ancient.damage, Damage::Corrupt { at: 0, .. }));
    }

    #[test]
    fn garbage_is_damage_and_never_a_panic() {
        let mut noise: u32 = 1;
        for len in 0..512 {
            let bytes: Vec<u8> = (0..len)
                .map(|_| {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    noise.to_le_bytes()[3]
                })
                .collect();
            let scan = scan(&bytes).unwrap();
            assert_eq!(scan.records, []);
            assert_eq!(scan.sound_len, 0);
            assert_eq!(scan.damage == Damage::None, len == 0);
        }
    }

    #[test]
    fn a_record_inside_a_record_is_never_believed() {
        let mut inner = Vec::new();
        encode(&samples::held("web"), &mut inner).unwrap();
        encode(&Record::Closed, &mut inner).unwrap();
        let smuggled = String::from_utf8_lossy(&inner).into_owned();
        let record = samples::begun_with("web", 1, vec!["sh".to_owned(), smuggled]);
        let mut bytes = file(&[record]);
        let mut payload = Vec::new();
        encode(&Record::Closed, &mut payload).unwrap();
        assert!(!bytes.ends_with(&payload));
        // The damage that would make a reader look inside.
        let start = header().len();
        bytes[start + 4] ^= 1;
        assert_eq!(scan(&bytes).unwrap().records, []);
    }

    #[test]
    fn a_record_of_a_later_program_is_passed_over_and_told() {
        let payload = br#"{"invented_later":{"child":"web"}}"#;
        let mut bytes = file(&[samples::held("a")]);
        let at = bytes.len() as u64;
        bytes.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
        bytes.extend(crc32fast::hash(payload).to_le_bytes());
        bytes.extend(payload);
        encode(&samples::held("b"), &mut bytes).unwrap();
        let scan = scan(&bytes).unwrap();
        assert_eq!(scan.records, [samples::held("a"), samples::held("b")]);
        assert_eq!(scan.damage, Damage::Corrupt { at, spots: 1 });
    }

    #[test]
    fn what_cannot_be_written_adds_nothing() {
        use std::os::unix::ffi::OsStringExt;
        let mut out = vec![7];
        let path = PathBuf::from(std::ffi::OsString::from_vec(vec![b'/', 0xff]));
        let seen = Record::LoadpathSeen {
            path,
            dev: 1,
            ino: 2,
        };
        assert!(matches!(encode(&seen, &mut out), Err(EncodeError::Json(_))));
        let long = Record::Opened {
            boot: "x".repeat(RECORD_LEN_MAX),
        };
        assert!(matches!(
            encode(&long, &mut out),
            Err(EncodeError::TooLong(_))
        ));
        assert_eq!(out, [7]);
    }

    #[test]
    fn a_length_that_lies_reads_nothing_beyond_the_file() {
        for len in [u32::MAX, 1 << 24, 9, 8] {
            let mut bytes = header();
            bytes.extend(len.to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(b"\"clos");
            let scan = scan(&bytes).unwrap();
            assert_eq!(scan.records, []);
            assert_ne!(scan.damage, Damage::None);
        }
    }
}
