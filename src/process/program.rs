//! Which file a command's first word stands for, and why that file cannot be executed.
//!
//! The search is execvp(3)'s, in the child's `PATH`, with one difference: a file that the kernel
//! does not take for a program is never given to a shell. What can be known without executing is
//! asked before a running child is replaced ([`Program::check`]); the kernel has the last word.
//!
//! Sources: execve(2), execvp(3).

use std::{
    ffi::{CString, OsStr},
    fs::{self, File},
    io::{self, ErrorKind, Read},
    os::unix::{ffi::OsStrExt, fs::FileTypeExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Access, AtFlags, CWD, OFlags, accessat};

/// Where a program is searched when there is no `PATH`: what the C library takes.
const PATH_WITHOUT_PATH: &str = "/bin:/usr/bin";

/// How much of a file the kernel looks at to tell what it is, in bytes.
const HEAD_BYTES: usize = 256;

/// Why a program cannot be executed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    /// A program with `/` that is not there.
    #[error("program `{program}` not found in `{}`{}", .workdir.display(), relative_hint(.program))]
    NotThere {
        /// As written.
        program: String,
        /// Where it was looked for.
        workdir: PathBuf,
    },
    /// A program without `/` that is nowhere.
    #[error(
        "program `{program}` not found in PATH `{path}`; hint: give its absolute path, or `./{program}` when it lies in the working directory"
    )]
    NotInPath {
        /// As written.
        program: String,
        /// Where it was looked for.
        path: String,
    },
    /// No execute permission.
    #[error("program `{}` is not executable; hint: chmod +x {}", .0.display(), .0.display())]
    NotExecutable(PathBuf),
    /// A directory, a device or another thing that is no file.
    #[error("program `{}` is {}, not a file", .0.display(), .1)]
    NotAFile(PathBuf, &'static str),
    /// Execute permission is there, but the way to it or its file system forbids.
    #[error(
        "program `{}` may not be executed: permission denied; hint: a directory on the way may be closed to us, or the file system mounted noexec",
        .0.display()
    )]
    Denied(PathBuf),
    /// A script whose interpreter is missing.
    #[error(
        "program `{}` needs `{interpreter}`, which is not there; hint: correct its first line{}",
        .program.display(),
        carriage_hint(.interpreter)
    )]
    NoInterpreter {
        /// The script.
        program: PathBuf,
        /// What its first line names.
        interpreter: String,
    },
    /// A binary whose loader or libraries' loader is missing.
    #[error(
        "program `{}` is there, but the loader it needs is not; hint: it was built for another system or C library",
        .0.display()
    )]
    NoLoader(PathBuf),
    /// Text without a first line that says what runs it.
    #[error(
        "program `{}` does not begin with `#!` and is no binary; hint: let its first line be `#!/bin/sh`",
        .0.display()
    )]
    NoShebang(PathBuf),
    /// Nothing at all.
    #[error("program `{}` is empty", .0.display())]
    Empty(PathBuf),
    /// A binary that this machine does not run.
    #[error(
        "program `{}` is a binary that this machine cannot run; hint: it was built for another architecture, or is damaged",
        .0.display()
    )]
    WrongMachine(PathBuf),
    /// Still being written.
    #[error(
        "program `{}` is open for writing; hint: write it beside and rename it into place",
        .0.display()
    )]
    Busy(PathBuf),
    /// More arguments and environment than the kernel takes.
    #[error("program `{program}`: the arguments and the environment together are too long")]
    TooLong {
        /// As written.
        program: String,
    },
    /// Anything else the kernel says.
    #[error("program `{}` cannot be executed: {}", .0.display(), .1)]
    Other(PathBuf, io::Error),
    /// A byte that no program can be given.
    #[error("program `{program}`: its name or an argument holds a NUL byte")]
    Nul {
        /// As written.
        program: String,
    },
}

fn relative_hint(program: &str) -> &'static str {
    if program.starts_with('/') {
        ""
    } else {
        "; hint: a program with `/` is relative to the working directory"
    }
}

fn carriage_hint(interpreter: &str) -> &'static str {
    if interpreter.ends_with('\r') {
        ", it ends with a carriage return: save the file with Unix line ends"
    } else {
        ""
    }
}

/// A command's first word and the files it may stand for.
#[derive(Debug)]
pub(super) struct Program<'a> {
    name: &'a str,
    workdir: &'a Path,
    path: &'a OsStr,
    /// Tried in this order; relative ones start at the working directory.
    pub(super) candidates: Vec<CString>,
}

impl<'a> Program<'a> {
    /// Lists the candidates; touches no file.
    ///
    /// # Errors
    /// [`ProgramError::Nul`].
    pub(super) fn new(
        name: &'a str,
        workdir: &'a Path,
        path: Option<&'a OsStr>,
    ) -> Result<Self, ProgramError> {
        let path = path.unwrap_or(OsStr::new(PATH_WITHOUT_PATH));
        let files: Vec<PathBuf> = if name.is_empty() {
            Vec::new()
        } else if name.contains('/') {
            vec![PathBuf::from(name)]
        } else {
            std::env::split_paths(path)
                .map(|folder| match folder.as_os_str().is_empty() {
                    true => Path::new(".").join(name),
                    false => folder.join(name),
                })
                .collect()
        };
        let candidates = files
            .into_iter()
            .map(|file| CString::new(file.into_os_string().as_bytes()))
            .collect::<Result<_, _>>()
            .map_err(|_| ProgramError::Nul {
                program: name.to_owned(),
            })?;
        Ok(Self {
            name,
            workdir,
            path,
            candidates,
        })
    }

    /// Whether one of the candidates would be executed, as far as can be told without trying.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(&self) -> Result<(), ProgramError> {
        let mut denied = None;
        for candidate in &self.candidates {
            match self.inspect(&self.file(candidate)) {
                Verdict::Fine => return Ok(()),
                Verdict::Absent => {}
                Verdict::Denied(error) => denied = denied.or(Some(error)),
                Verdict::Broken(error) => return Err(error),
            }
        }
        Err(denied.unwrap_or_else(|| self.not_found()))
    }

    /// What the kernel's refusal means. `tried` is the index of the candidate it is about.
    pub(super) fn explain(&self, error: io::Error, tried: usize) -> ProgramError {
        let file = match self.candidates.get(tried) {
            Some(candidate) => self.file(candidate),
            None => return self.not_found(),
        };
        match error.raw_os_error() {
            // The kernel says so too when what a file needs is missing, so look again.
            Some(libc::ENOENT | libc::ENOTDIR) => match self.check() {
                Err(error) => error,
                Ok(()) => self.first_there().map_or_else(
                    || self.not_found(),
                    |file| match is_elf(&file) {
                        true => ProgramError::NoLoader(file),
                        false => ProgramError::Other(file, error),
                    },
                ),
            },
            Some(libc::EACCES) => match self.check() {
                Err(error) => error,
                Ok(()) => ProgramError::Denied(file),
            },
            Some(libc::ENOEXEC) => match file.metadata() {
                Ok(metadata) if metadata.len() == 0 => ProgramError::Empty(file),
                Ok(_) | Err(_) if is_elf(&file) => ProgramError::WrongMachine(file),
                Ok(_) | Err(_) => ProgramError::NoShebang(file),
            },
            Some(libc::ETXTBSY) => ProgramError::Busy(file),
            Some(libc::E2BIG) => ProgramError::TooLong {
                program: self.name.to_owned(),
            },
            Some(_) | None => ProgramError::Other(file, error),
        }
    }

    fn not_found(&self) -> ProgramError {
        let program = self.name.to_owned();
        if program.contains('/') {
            ProgramError::NotThere {
                program,
                workdir: self.workdir.to_owned(),
            }
        } else {
            ProgramError::NotInPath {
                program,
                path: self.path.to_string_lossy().into_owned(),
            }
        }
    }

    fn file(&self, candidate: &CString) -> PathBuf {
        let file = self.workdir.join(OsStr::from_bytes(candidate.as_bytes()));
        // Without the `.` in the middle, for the sake of whoever reads it.
        file.components().collect()
    }

    fn first_there(&self) -> Option<PathBuf> {
        let mut files = self.candidates.iter().map(|candidate| self.file(candidate));
        files.find(|file| file.exists())
    }

    fn inspect(&self, file: &Path) -> Verdict {
        let metadata = match fs::metadata(file) {
            Ok(metadata) => metadata,
            // In a search, a closed folder says nothing about the program.
            Err(error)
                if error.kind() == ErrorKind::PermissionDenied && self.name.contains('/') =>
            {
                return Verdict::Denied(ProgramError::Denied(file.to_owned()));
            }
            Err(_) => return Verdict::Absent,
        };
        if !metadata.is_file() {
            let kind = kind(metadata.file_type());
            return Verdict::Denied(ProgramError::NotAFile(file.to_owned(), kind));
        }
        if accessat(CWD, file, Access::EXEC_OK, AtFlags::EACCESS).is_err() {
            use std::os::unix::fs::PermissionsExt;
            let any_x = metadata.permissions().mode() & 0o111 != 0;
            return Verdict::Denied(match any_x {
                true => ProgramError::Denied(file.to_owned()),
                false => ProgramError::NotExecutable(file.to_owned()),
            });
        }
        match read_head(file) {
            Some(head) => self.inspect_head(file, &head),
            // One may execute what one cannot read.
            None => Verdict::Fine,
        }
    }

    fn inspect_head(&self, file: &Path, head: &[u8]) -> Verdict {
        if let Some(interpreter) = interpreter(head) {
            let name = OsStr::from_bytes(interpreter);
            if fs::metadata(self.workdir.join(name)).is_err() {
                return Verdict::Broken(ProgramError::NoInterpreter {
                    program: file.to_owned(),
                    interpreter: name.to_string_lossy().into_owned(),
                });
            }
            return Verdict::Fine;
        }
        if head.is_empty() {
            return Verdict::Broken(ProgramError::Empty(file.to_owned()));
        }
        // What else the kernel may have been taught to run (binfmt_misc) is binary.
        if head.iter().all(|byte| is_text(*byte)) {
            return Verdict::Broken(ProgramError::NoShebang(file.to_owned()));
        }
        Verdict::Fine
    }
}

enum Verdict {
    Fine,
    /// The search goes on.
    Absent,
    /// The search goes on, but this is what is said when it finds nothing.
    Denied(ProgramError),
    /// The search ends here.
    Broken(ProgramError),
}

/// What a thing is called that is not a regular file.
pub(super) fn kind(file_type: fs::FileType) -> &'static str {
    if file_type.is_dir() {
        "a directory"
    } else if file_type.is_fifo() {
        "a named pipe"
    } else if file_type.is_socket() {
        "a socket"
    } else if file_type.is_block_device() || file_type.is_char_device() {
        "a device"
    } else {
        "not a regular file"
    }
}

/// The first bytes of a regular file; `None` when it cannot be read.
fn read_head(file: &Path) -> Option<Vec<u8>> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(file)
        .ok()?;
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let limit = u64::try_from(HEAD_BYTES).unwrap_or(u64::MAX);
    file.take(limit).read_to_end(&mut head).ok()?;
    Some(head)
}

fn is_elf(file: &Path) -> bool {
    read_head(file).is_some_and(|head| head.starts_with(b"\x7fELF"))
}

fn is_text(byte: u8) -> bool {
    byte >= b' ' || byte.is_ascii_whitespace()
}

/// The interpreter that a script's first line names.
fn interpreter(head: &[u8]) -> Option<&[u8]> {
    let line = head.strip_prefix(b"#!")?;
    let line = line.split(|byte| *byte == b'\n').next()?;
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    line.split(is_blank).find(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn write(folder: &Path, name: &str, text: &[u8], mode: u32) -> PathBuf {
        let file = folder.join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    fn check(name: &str, workdir: &Path, path: &str) -> Result<(), String> {
        Program::new(name, workdir, Some(OsStr::new(path)))
            .and_then(|program| program.check())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn candidates_are_those_of_execvp() {
        let list = |name, path: Option<&'static str>| {
            Program::new(name, Path::new("/w"), path.map(OsStr::new))
                .unwrap()
                .candidates
                .iter()
                .map(|file| file.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(list("x", Some("/a:/b")), ["/a/x", "/b/x"]);
        assert_eq!(list("x", Some("/a::rel")), ["/a/x", "./x", "rel/x"]);
        assert_eq!(list("x", None), ["/bin/x", "/usr/bin/x"]);
        assert_eq!(list("./x", Some("/a")), ["./x"]);
        assert_eq!(list("a/x", Some("/a")), ["a/x"]);
        assert_eq!(list("/x", Some("/a")), ["/x"]);
        assert!(list("", Some("/a")).is_empty());
    }

    #[test]
    fn a_nul_byte_is_refused() {
        assert!(Program::new("a\0b", Path::new("/"), None).is_err());
    }

    #[test]
    fn each_reason_has_its_sentence_and_its_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let text = at.display();
        write(at, "plain", b"echo\n", 0o755);
        write(at, "closed", b"#!/bin/sh\n", 0o644);
        write(at, "empty", b"", 0o755);
        write(at, "lost", b"#! /no/such/sh -e\n", 0o755);
        write(at, "dos", b"#!/bin/sh\r\n", 0o755);
        write(at, "good", b"#!/bin/sh\n", 0o755);
        fs::create_dir(at.join("dir")).unwrap();
        assert_eq!(check("./good", at, ""), Ok(()));
        assert_eq!(check("good", Path::new("/"), &format!("/x:{text}")), Ok(()));
        let no = |name: &str| check(name, at, "/nowhere").unwrap_err();
        assert_eq!(
            no("./x"),
            format!(
                "program `./x` not found in `{text}`; hint: a program with `/` is relative to the working directory"
            )
        );
        assert_eq!(
            no("x"),
            "program `x` not found in PATH `/nowhere`; hint: give its absolute path, or `./x` when it lies in the working directory"
        );
        assert_eq!(
            no("./plain"),
            format!(
                "program `{text}/plain` does not begin with `#!` and is no binary; hint: let its first line be `#!/bin/sh`"
            )
        );
        assert_eq!(
            no("./closed"),
            format!("program `{text}/closed` is not executable; hint: chmod +x {text}/closed")
        );
        assert_eq!(no("./empty"), format!("program `{text}/empty` is empty"));
        assert_eq!(
            no("./lost"),
            format!(
                "program `{text}/lost` needs `/no/such/sh`, which is not there; hint: correct its first line"
            )
        );
        assert!(no("./dos").ends_with("save the file with Unix line ends"));
        assert_eq!(
            no("./dir"),
            format!("program `{text}/dir` is a directory, not a file")
        );
    }

    #[test]
    fn what_is_not_executable_does_not_end_the_search() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(first.path(), "tool", b"#!/bin/sh\n", 0o644);
        let path = format!("{}:{}", first.path().display(), second.path().display());
        let error = check("tool", Path::new("/"), &path).unwrap_err();
        assert!(error.contains("is not executable"), "{error}");
        write(second.path(), "tool", b"#!/bin/sh\n", 0o755);
        assert_eq!(check("tool", Path::new("/"), &path), Ok(()));
    }

    #[test]
    fn a_closed_folder_denies_what_is_named_and_hides_what_is_searched() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("closed");
        fs::create_dir(&inner).unwrap();
        write(&inner, "tool", b"#!/bin/sh\n", 0o755);
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o600)).unwrap();
        crate::process::tests::as_nobody(folder.path(), || {
            let named = check("closed/tool", folder.path(), "").unwrap_err();
            assert!(named.contains("permission denied; hint: "), "{named}");
            let searched = check("tool", Path::new("/"), inner.to_str().unwrap()).unwrap_err();
            assert!(searched.contains("not found in PATH"), "{searched}");
        });
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn one_may_execute_what_one_cannot_read() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "tool", b"no magic", 0o111);
        crate::process::tests::as_nobody(folder.path(), || {
            assert_eq!(check("./tool", folder.path(), ""), Ok(()));
        });
    }

    #[test]
    fn a_pipe_in_the_place_of_a_program_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let mode = rustix::fs::Mode::from(0o755);
        rustix::fs::mknodat(
            CWD,
            folder.path().join("p"),
            rustix::fs::FileType::Fifo,
            mode,
            0,
        )
        .unwrap();
        let error = check("./p", folder.path(), "").unwrap_err();
        assert!(error.ends_with("is a named pipe, not a file"), "{error}");
    }

    #[test]
    fn the_interpreter_is_the_first_word_of_the_first_line() {
        assert_eq!(interpreter(b"#!/bin/sh\nx"), Some(&b"/bin/sh"[..]));
        assert_eq!(interpreter(b"#! \t/bin/sh -e\n"), Some(&b"/bin/sh"[..]));
        assert_eq!(interpreter(b"#!/bin/sh"), Some(&b"/bin/sh"[..]));
        assert_eq!(interpreter(b"#!\n/bin/sh"), None);
        assert_eq!(interpreter(b"# !/bin/sh"), None);
        assert_eq!(interpreter(b""), None);
    }
}
