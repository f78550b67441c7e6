//! A child's output files: opened by the server, written to by the child alone.
//!
//! - A file is opened without following a link at its end, without waiting (a named pipe would
//!   make us), and must be a regular file or a character device. What was opened is what is
//!   looked at, never the path twice.
//! - Everything is appended (`O_APPEND`), so that what a child and its grandchildren write never
//!   overlaps; one path for both streams is opened once and shared.
//! - `create` truncates in the child, right before exec: a start that fails leaves the log of the
//!   run before as it was.
//!
//! Absent on purpose: making folders. `log_dir` is the server's; in an absolute path a missing
//! folder is more likely a slip than a wish.
//!
//! Sources: open(2), proc(5) for what `/dev/stdout` is.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, accessat, fcntl_setfl, fstat, openat},
    io::Errno,
};

use super::{program::kind, step::Stream};
use crate::spec::{OpenMode, Sink};

/// The permissions of a new output file, less the server's umask.
const FILE_MODE: u32 = 0o640;

/// Why an output cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum OutputError {
    /// Its folder is not there.
    #[error(
        "output `{}` cannot be opened: folder `{}` does not exist; hint: mkdir -p {}",
        .path.display(), .folder.display(), .folder.display()
    )]
    NoFolder {
        /// The output.
        path: PathBuf,
        /// What is missing.
        folder: PathBuf,
    },
    /// A link stands at its end.
    #[error(
        "output `{}` is a symbolic link, which is not followed; hint: name the file itself, or use `output: inherit` for the server's own",
        .0.display()
    )]
    Link(PathBuf),
    /// A directory, a pipe, a socket, a disk.
    #[error("output `{}` is {}; hint: use a regular file or a character device", .0.display(), .1)]
    NotAFile(PathBuf, &'static str),
    /// We have no right to.
    #[error(
        "output `{}` cannot be opened: permission denied; hint: see who owns it and its folder",
        .0.display()
    )]
    Denied(PathBuf),
    /// There is no space for a new file.
    #[error(
        "output `{}` cannot be opened: {}; hint: free some space there (`df -h`, `df -i`)",
        .0.display(), .1
    )]
    NoSpace(PathBuf, io::Error),
    /// Anything else the kernel says.
    #[error("output `{}` cannot be opened: {}", .0.display(), .1)]
    Other(PathBuf, io::Error),
}

/// The opened outputs of one start.
#[derive(Debug)]
pub(super) struct Outputs {
    stdout: Target,
    stderr: Target,
}

/// Where a stream goes.
#[derive(Debug)]
enum Target {
    /// Into the server's own stream: nothing is to be done.
    Inherit,
    /// Into a file of its own.
    File(Opened),
    /// Into the file of standard output.
    Shared,
}

#[derive(Debug)]
struct Opened {
    fd: OwnedFd,
    truncate: bool,
}

impl Outputs {
    /// Opens both. Makes files that are not there; truncates nothing.
    ///
    /// # Errors
    /// [`OutputError`] of the first that cannot be had.
    pub(super) fn open(stdout: &Sink, stderr: &Sink) -> Result<Self, OutputError> {
        let first = match stdout {
            Sink::Inherit => Target::Inherit,
            Sink::File { path, mode } => Target::File(Opened::new(path, *mode)?),
        };
        let second = match (stdout, stderr) {
            (_, Sink::Inherit) => Target::Inherit,
            (Sink::File { path: one, .. }, Sink::File { path: two, .. }) if one == two => {
                Target::Shared
            }
            (_, Sink::File { path, mode }) => Target::File(Opened::new(path, *mode)?),
        };
        Ok(Self {
            stdout: first,
            stderr: second,
        }
        .with_shared_mode(stderr))
    }

    /// One file for both streams is truncated when either asks for it.
    fn with_shared_mode(mut self, stderr: &Sink) -> Self {
        if let (Target::File(file), Target::Shared, Sink::File { mode, .. }) =
            (&mut self.stdout, &self.stderr, stderr)
        {
            file.truncate |= file.is_truncated_by(*mode);
        }
        self
    }

    /// Nothing is truncated after all: what a hook writes is added.
    pub(super) fn appending(mut self) -> Self {
        for target in [&mut self.stdout, &mut self.stderr] {
            if let Target::File(file) = target {
                file.truncate = false;
            }
        }
        self
    }

    /// The files, each with the stream it is for; streams that are inherited are not among them.
    pub(super) fn files(&self) -> impl Iterator<Item = (BorrowedFd<'_>, Stream)> {
        let stdout = self.stdout.file();
        let stderr = match &self.stderr {
            Target::Shared => stdout,
            Target::Inherit | Target::File(_) => self.stderr.file(),
        };
        let streams = [(stdout, Stream::Output), (stderr, Stream::Errors)];
        streams
            .into_iter()
            .filter_map(|(file, stream)| Some((file?.fd.as_fd(), stream)))
    }

    /// The streams whose file is to be emptied.
    pub(super) fn truncated(&self) -> impl Iterator<Item = Stream> {
        let streams = [
            (&self.stdout, Stream::Output),
            (&self.stderr, Stream::Errors),
        ];
        streams.into_iter().filter_map(|(target, stream)| {
            let file = target.file()?;
            file.truncate.then_some(stream)
        })
    }
}

impl Target {
    fn file(&self) -> Option<&Opened> {
        match self {
            Self::File(file) => Some(file),
            Self::Inherit | Self::Shared => None,
        }
    }
}

impl Opened {
    fn new(path: &Path, mode: OpenMode) -> Result<Self, OutputError> {
        let fd = open(path, OFlags::CREATE)?;
        // Only the opening must not wait: the child gets a descriptor as programs expect it.
        fcntl_setfl(&fd, OFlags::APPEND).map_err(|error| other(path, error))?;
        let mut opened = Self {
            fd,
            truncate: false,
        };
        opened.truncate = opened.is_truncated_by(mode);
        Ok(opened)
    }

    /// Devices cannot be emptied.
    fn is_truncated_by(&self, mode: OpenMode) -> bool {
        let is_regular = || {
            fstat(&self.fd)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
        };
        match mode {
            OpenMode::Create => is_regular(),
            OpenMode::Append => false,
        }
    }
}

/// Whether a sink could be opened. Makes nothing and truncates nothing.
///
/// # Errors
/// [`OutputError`].
pub(super) fn check(sink: &Sink) -> Result<(), OutputError> {
    let Sink::File { path, .. } = sink else {
        return Ok(());
    };
    if !matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound) {
        return open(path, OFlags::empty()).map(drop);
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    let rights = Access::WRITE_OK | Access::EXEC_OK;
    accessat(CWD, folder, rights, AtFlags::EACCESS).map_err(|error| refusal(path, error))
}

fn open(path: &Path, extra: OFlags) -> Result<OwnedFd, OutputError> {
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CLOEXEC
        | OFlags::NOFOLLOW
        | OFlags::NOCTTY
        | OFlags::NONBLOCK
        | extra;
    let fd =
        openat(CWD, path, flags, Mode::from(FILE_MODE)).map_err(|error| refusal(path, error))?;
    let stat = fstat(&fd).map_err(|error| other(path, error))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::CharacterDevice => Ok(fd),
        FileType::Fifo => Err(OutputError::NotAFile(path.to_owned(), "a named pipe")),
        FileType::BlockDevice => Err(OutputError::NotAFile(path.to_owned(), "a block device")),
        FileType::Directory | FileType::Socket | FileType::Symlink | FileType::Unknown => {
            Err(OutputError::NotAFile(path.to_owned(), "not a file"))
        }
    }
}

/// What the kernel's refusal to open means. For the words of a message only, so that it does no
/// harm when the path changes meanwhile.
fn refusal(path: &Path, error: Errno) -> OutputError {
    let at_end = path.symlink_metadata().ok().map(|found| found.file_type());
    match (error, at_end) {
        (Errno::LOOP, Some(found)) if found.is_symlink() => OutputError::Link(path.to_owned()),
        (Errno::NXIO | Errno::ISDIR, Some(found)) => {
            OutputError::NotAFile(path.to_owned(), kind(found))
        }
        (Errno::NOENT, None) => OutputError::NoFolder {
            path: path.to_owned(),
            folder: missing_folder(path),
        },
        (Errno::ACCESS | Errno::PERM, _) => OutputError::Denied(path.to_owned()),
        (Errno::NOSPC | Errno::DQUOT, _) => OutputError::NoSpace(path.to_owned(), error.into()),
        (error, _) => other(path, error),
    }
}

fn other(path: &Path, error: Errno) -> OutputError {
    OutputError::Other(path.to_owned(), error.into())
}

/// The folder to make: the one that the file lies in.
fn missing_folder(path: &Path) -> PathBuf {
    let folder = path.parent().unwrap_or(Path::new("/"));
    folder.to_owned()
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write,
        os::unix::{fs::PermissionsExt, fs::symlink, net::UnixListener},
    };

    use super::*;

    fn file(path: PathBuf, mode: OpenMode) -> Sink {
        Sink::File { path, mode }
    }

    fn append(path: PathBuf) -> Sink {
        file(path, OpenMode::Append)
    }

    fn no(path: PathBuf) -> String {
        let sink = append(path);
        let opened = Outputs::open(&sink, &Sink::Inherit).unwrap_err();
        let checked = check(&sink).unwrap_err().to_string();
        assert_eq!(opened.to_string(), checked, "preflight and start agree");
        checked
    }

    #[test]
    fn a_new_file_is_not_for_everybody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let outputs = Outputs::open(&append(path.clone()), &Sink::Inherit).unwrap();
        assert_eq!(outputs.files().count(), 1);
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o137, 0, "{mode:o}");
    }

    #[test]
    fn opening_truncates_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "old").unwrap();
        let sink = file(path.clone(), OpenMode::Create);
        check(&sink).unwrap();
        let outputs = Outputs::open(&sink, &Sink::Inherit).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(outputs.truncated().collect::<Vec<_>>(), [Stream::Output]);
        assert_eq!(outputs.appending().truncated().count(), 0);
    }

    #[test]
    fn a_check_makes_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        check(&append(path.clone())).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn one_path_for_both_is_opened_once_and_truncated_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let modes = [
            (OpenMode::Append, OpenMode::Append, 0),
            (OpenMode::Append, OpenMode::Create, 1),
            (OpenMode::Create, OpenMode::Append, 1),
            (OpenMode::Create, OpenMode::Create, 1),
        ];
        for (first, second, truncated) in modes {
            let outputs =
                Outputs::open(&file(path.clone(), first), &file(path.clone(), second)).unwrap();
            let files: Vec<_> = outputs.files().collect();
            let [(one, Stream::Output), (two, Stream::Errors)] = files.as_slice() else {
                panic!("{files:?}");
            };
            use std::os::fd::AsRawFd;
            assert_eq!(one.as_raw_fd(), two.as_raw_fd());
            assert_eq!(outputs.truncated().count(), truncated);
        }
    }

    #[test]
    fn what_is_inherited_is_not_opened() {
        let outputs = Outputs::open(&Sink::Inherit, &Sink::Inherit).unwrap();
        assert_eq!(outputs.files().count(), 0);
        assert_eq!(outputs.truncated().count(), 0);
        check(&Sink::Inherit).unwrap();
    }

    #[test]
    fn a_character_device_is_allowed_and_never_truncated() {
        let sink = file(PathBuf::from("/dev/null"), OpenMode::Create);
        check(&sink).unwrap();
        let outputs = Outputs::open(&sink, &Sink::Inherit).unwrap();
        assert_eq!(outputs.truncated().count(), 0);
    }

    #[test]
    fn the_child_gets_a_descriptor_that_waits() {
        let folder = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(&append(folder.path().join("log")), &Sink::Inherit).unwrap();
        for (fd, _) in outputs.files() {
            let flags = rustix::fs::fcntl_getfl(fd).unwrap();
            assert!(!flags.contains(OFlags::NONBLOCK));
            assert!(flags.contains(OFlags::APPEND));
        }
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (victim, link) = (folder.path().join("victim"), folder.path().join("log"));
        symlink(&victim, &link).unwrap();
        assert!(no(link.clone()).contains("is a symbolic link, which is not followed"));
        assert!(!victim.exists());
        fs::write(&victim, "precious").unwrap();
        assert!(no(link).contains("is a symbolic link"));
        assert_eq!(fs::read(victim).unwrap(), b"precious");
    }

    #[test]
    fn a_planted_pipe_or_socket_makes_nobody_wait() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::from(0o600), 0).unwrap();
        let without_reader = no(pipe.clone());
        assert!(
            without_reader.contains("is a named pipe"),
            "{without_reader}"
        );
        let _reader = openat(CWD, &pipe, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        assert_eq!(no(pipe), without_reader);
        let socket = folder.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        assert!(no(socket).contains("is a socket"));
    }

    #[test]
    fn directories_and_missing_folders_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().display().to_string();
        assert!(no(folder.path().to_owned()).contains("is a directory"));
        assert_eq!(
            no(folder.path().join("a/b/log")),
            format!(
                "output `{text}/a/b/log` cannot be opened: folder `{text}/a/b` does not exist; hint: mkdir -p {text}/a/b"
            )
        );
        fs::File::create(folder.path().join("f"))
            .unwrap()
            .write_all(b"x")
            .unwrap();
        let error = no(folder.path().join("f/log"));
        assert!(error.contains("Not a directory"), "{error}");
    }

    #[test]
    fn a_closed_folder_is_a_denial() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o500)).unwrap();
        let path = folder.path().join("log");
        crate::process::tests::as_nobody(folder.path(), || {
            assert!(no(path).contains("permission denied; hint: "));
        });
    }

    #[test]
    fn a_file_of_another_is_a_denial() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        crate::process::tests::as_nobody(folder.path(), || {
            assert!(no(path).contains("permission denied; hint: "));
        });
    }
}
