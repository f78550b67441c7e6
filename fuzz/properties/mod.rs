//! What must hold of every input: the bodies of the fuzz targets, which a test runs over their
//! seeds as well.
//!
//! Each `holds` is given any bytes and panics when a property is broken. They use what the library
//! offers to anybody; what they compare with is read in another way than the library does.

// This is a library here, and a module of a test there.
#![allow(unreachable_pub)]

pub mod child_yml;
pub mod key_file;
pub mod key_scope;
pub mod record_file;
pub mod request_line;
pub mod server_yml;
mod text;
pub mod token;
