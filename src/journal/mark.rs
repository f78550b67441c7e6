//! How long a store's file once was: a file that was cut between two records looks whole without.
//!
//! ```text
//! runtime.length = length (u64, little-endian) crc32 of these eight bytes (u32, little-endian)
//! ```
//!
//! - It is written over in place after each record, and is 0 from before a file written anew takes
//!   the name until after. So it never says more than was once written, whoever dies when, and a
//!   sound length below it means that records were lost.
//! - It may say less: a server died between the two writes, or a child wrote its own record. A
//!   mark that is missing, torn or damaged says nothing.
//! - A power cut may keep the mark and lose the records, if these were not synced: hence the mark
//!   of a store that outlives the host is written after the sync, and its 0 is synced.

use std::io;

use super::{
    folder::{Medium, Shelf},
    log::Durability,
};

/// How many bytes a mark has.
pub(super) const MARK_LEN: usize = 12;

/// The mark of one store. Its file is open only while it is written: descriptors are scarce.
pub(super) struct Mark {
    name: String,
}

impl Mark {
    /// The mark of the store with this name.
    pub(super) fn of(store: &str) -> Self {
        let stem = store.strip_suffix(".journal").unwrap_or(store);
        Self {
            name: format!("{stem}.length"),
        }
    }

    /// How long the file was at least; `None` when that is not known.
    pub(super) fn read(&self, shelf: &dyn Shelf) -> Option<u64> {
        match shelf.read(&self.name) {
            Ok(read) => decode(&read?.bytes),
            Err(_) => None,
        }
    }

    /// Notes that the file has this length. Where that fails, the mark says less than it could.
    pub(super) fn note(&self, shelf: &dyn Shelf, len: u64) {
        let _best_effort = self.write(shelf, len);
    }

    /// Says nothing any more: the file is about to be another one, which may be shorter.
    ///
    /// # Errors
    ///
    /// It still says something.
    pub(super) fn clear(&self, shelf: &dyn Shelf, durability: Durability) -> io::Result<()> {
        let synced = |mut file: Box<dyn Medium>| match durability {
            Durability::Server => Ok(()),
            Durability::Host => file.sync(),
        };
        self.write(shelf, 0).and_then(synced).or_else(|_| {
            shelf.remove(&self.name)?;
            match durability {
                Durability::Server => Ok(()),
                Durability::Host => shelf.sync(),
            }
        })
    }

    fn write(&self, shelf: &dyn Shelf, len: u64) -> io::Result<Box<dyn Medium>> {
        let mut file = shelf.open_over(&self.name)?;
        file.write_over(&encode(len))?;
        Ok(file)
    }
}

fn encode(len: u64) -> [u8; MARK_LEN] {
    let len = len.to_le_bytes();
    let mut mark = [0; MARK_LEN];
    let (first, last) = mark.split_at_mut(len.len());
    first.copy_from_slice(&len);
    last.copy_from_slice(&crc32fast::hash(&len).to_le_bytes());
    mark
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let (len, crc) = bytes.split_first_chunk::<8>()?;
    let crc: [u8; 4] = crc.try_into().ok()?;
    (crc32fast::hash(len) == u32::from_le_bytes(crc)).then(|| u64::from_le_bytes(*len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_is_torn_or_damaged_says_nothing() {
        let whole = encode(4_242);
        assert_eq!(decode(&whole), Some(4_242));
        for at in 0..whole.len() {
            assert_eq!(decode(&whole[..at]), None, "cut at {at}");
            let mut flipped = whole;
            flipped[at] ^= 0x20;
            assert_eq!(decode(&flipped), None, "flipped at {at}");
            let mut mixed = encode(0);
            mixed[..at].copy_from_slice(&whole[..at]);
            let torn = decode(&mixed);
            assert!(torn.is_none_or(|len| len == 0 || len == 4_242), "{at}");
        }
        assert_eq!(decode(&[&whole[..], b"x"].concat()), None);
        assert_eq!(decode(&[0; MARK_LEN]), None);
    }

    #[test]
    fn each_store_has_a_mark_of_its_own() {
        assert_eq!(Mark::of("runtime.journal").name, "runtime.length");
        assert_eq!(Mark::of("state.journal").name, "state.length");
    }
}
