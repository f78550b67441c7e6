//! Whom we trust: root, ourselves, and the users that `trusted_owners` names.
//!
//! Users come from `/etc/passwd` alone (passwd(5)): a static binary has no name service. It is
//! read once, when the owners are made; whoever edits server.yml makes new ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{ErrorKind, Read},
    sync::Arc,
};

use rustix::process::{getegid, geteuid};

use super::TrustError;

const PASSWD: &str = "/etc/passwd";

/// The most of `/etc/passwd` that is read.
const PASSWD_BYTES_MAX: u64 = 16 << 20;

/// The user id of root.
const ROOT: u32 = 0;

/// The users who may own what is run here, and the primary groups of all users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owners {
    own: u32,
    trusted: BTreeSet<u32>,
    users: Arc<BTreeMap<u32, User>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    name: String,
    group: u32,
}

impl Owners {
    /// Root, the effective user, and these users, each by name or by number.
    ///
    /// # Errors
    ///
    /// A name that is not in `/etc/passwd`, or that file cannot be read. That it does not exist
    /// is no error: then only numbers can be named.
    pub fn new(names: &[String]) -> Result<Self, TrustError> {
        let text = read_passwd()?;
        Self::from_passwd(&text, geteuid().as_raw(), getegid().as_raw(), names)
    }

    /// As [`Owners::new`], from the text of a passwd file and our own ids.
    pub(super) fn from_passwd(
        text: &str,
        own: u32,
        own_group: u32,
        names: &[String],
    ) -> Result<Self, TrustError> {
        let mut users = BTreeMap::new();
        let mut ids = BTreeMap::new();
        for (name, uid, group) in text.lines().filter_map(user_of_line) {
            // The first line wins, as it does for getpwuid(3) and getpwnam(3).
            ids.entry(name).or_insert(uid);
            users.entry(uid).or_insert_with(|| User {
                name: name.to_owned(),
                group,
            });
        }
        let mut trusted = BTreeSet::from([ROOT, own]);
        for name in names {
            let number = || name.parse().ok().filter(|_| is_number(name));
            let Some(uid) = ids.get(name.as_str()).copied().or_else(number) else {
                return Err(TrustError::UnknownUser { name: name.clone() });
            };
            trusted.insert(uid);
        }
        // Containers run as users that no file knows.
        users.entry(ROOT).or_insert_with(|| User {
            name: "root".to_owned(),
            group: 0,
        });
        users.entry(own).or_insert_with(|| User {
            name: own.to_string(),
            group: own_group,
        });
        Ok(Self {
            own,
            trusted,
            users: Arc::new(users),
        })
    }

    /// Whether this user may own what is run here.
    #[must_use]
    pub fn trusts(&self, uid: u32) -> bool {
        self.trusted.contains(&uid)
    }

    /// The primary group of a user, when it is known.
    #[must_use]
    pub fn primary_group(&self, uid: u32) -> Option<u32> {
        self.users.get(&uid).map(|user| user.group)
    }

    /// A user as people call it: the name, else the number.
    #[must_use]
    pub fn name(&self, uid: u32) -> String {
        match self.users.get(&uid) {
            Some(user) => user.name.clone(),
            None => uid.to_string(),
        }
    }

    /// The user we run as, as people call it.
    #[must_use]
    pub fn own_name(&self) -> String {
        self.name(self.own)
    }
}

/// `u32::from_str` takes a `+`, which no user id begins with.
fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

fn user_of_line(line: &str) -> Option<(&str, u32, u32)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = fields.nth(1)?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    Some((name, uid, group))
}

fn read_passwd() -> Result<String, TrustError> {
    let fail = |error: std::io::Error| TrustError::Passwd {
        why: error.to_string(),
    };
    let file = match File::open(PASSWD) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut bytes = Vec::new();
    file.take(PASSWD_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "root:x:0:0:root:/root:/bin/sh\n\
                        toor:x:0:7::/root:/bin/sh\n\
                        broken\n\
                        odd:x:minus:1::/:/bin/sh\n\
                        \n\
                        deploy:x:1001:2001::/home/deploy:/bin/sh\n\
                        1001:x:1500:1500::/:/bin/sh\n";

    fn owners(names: &[&str]) -> Result<Owners, TrustError> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Owners::from_passwd(TEXT, 1000, 1234, &names)
    }

    #[test]
    fn root_and_the_own_user_are_always_trusted_and_nobody_else() {
        let owners = owners(&[]).unwrap();
        assert!(owners.trusts(0) && owners.trusts(1000));
        assert!(!owners.trusts(1001) && !owners.trusts(u32::MAX));
    }

    #[test]
    fn a_named_user_is_trusted_by_its_number() {
        assert!(owners(&["deploy"]).unwrap().trusts(1001));
        assert!(owners(&["4242"]).unwrap().trusts(4242));
    }

    #[test]
    fn a_user_whose_name_is_a_number_is_found_by_name_first() {
        let owners = owners(&["1001"]).unwrap();
        assert!(owners.trusts(1500) && !owners.trusts(1001));
    }

    #[test]
    fn an_unknown_user_is_an_error_that_names_it() {
        for name in ["nosuch", "", "+5", "-1", "4294967296", "broken", "odd"] {
            let error = owners(&[name]).unwrap_err();
            assert_eq!(error, TrustError::UnknownUser { name: name.into() });
        }
    }

    #[test]
    fn the_first_line_of_a_user_wins() {
        let owners = owners(&[]).unwrap();
        assert_eq!(owners.name(0), "root");
        assert_eq!(owners.primary_group(0), Some(0));
    }

    #[test]
    fn a_user_in_no_file_has_a_number_and_our_own_group_is_known() {
        let owners = owners(&[]).unwrap();
        assert_eq!(owners.own_name(), "1000");
        assert_eq!(owners.primary_group(1000), Some(1234));
        assert_eq!(owners.name(77), "77");
        assert_eq!(owners.primary_group(77), None);
    }

    #[test]
    fn the_real_passwd_file_is_read() {
        assert_eq!(Owners::new(&[]).unwrap().name(0), "root");
    }
}
