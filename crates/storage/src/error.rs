//! What can go wrong with a data directory and with what is to be put there, by what follows from it.

use std::{fmt, io};

use base::{Index, Term};

/// Why storage cannot be used, or not any longer, or not with what another node sent. The text is one line that names the file and what to do.
#[derive(Debug)]
pub enum StorageError {
    /// The operating system refused a read, write or sync. The node stops; nothing is tried again.
    Failed {
        /// What was attempted.
        doing: &'static str,
        /// The file or directory.
        file: String,
        /// The reason.
        cause: io::Error,
    },
    /// Another program has kept a checkpoint file locked for as long as [`crate::checkpoint::BUSY_MAX`]. Nothing was changed: try again.
    Busy {
        /// The file.
        file: String,
    },
    /// A file does not hold what this program wrote there. The node must not go on with this data.
    Damaged {
        /// The file.
        file: String,
        /// Where in it, in bytes, if that is known.
        offset: Option<u64>,
        /// What is wrong there.
        what: String,
    },
    /// Another process uses the data directory.
    Locked {
        /// The lock file.
        file: String,
        /// What it says about its holder.
        holder: String,
    },
    /// The data directory belongs to something else than what was asked for.
    Foreign {
        /// The directory.
        directory: String,
        /// What differs, with both values.
        what: String,
    },
    /// A backup file cannot be used. Nothing of it has been taken over.
    BadBackup {
        /// The file.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// A snapshot that another node sent cannot be used. Nothing of it has been taken over: it can be sent again.
    BadSnapshot {
        /// What it was announced to be of.
        index: Index,
        /// The term of that entry.
        term: Term,
        /// What is wrong with it.
        what: String,
    },
}

impl StorageError {
    pub(crate) fn failed(doing: &'static str, file: &str, cause: io::Error) -> StorageError {
        StorageError::Failed { doing, file: file.into(), cause }
    }

    pub(crate) fn damaged(file: &str, offset: impl Into<Option<u64>>, what: impl Into<String>) -> StorageError {
        StorageError::Damaged { file: file.into(), offset: offset.into(), what: what.into() }
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StorageError::Failed { doing, file, cause } => write!(f, "cannot {doing} {file}: {cause}"),
            StorageError::Busy { file } => {
                write!(f, "another program has locked {file}; end its transaction, or close it")
            }
            StorageError::Damaged { file, offset, what } => {
                write!(f, "{file} is damaged")?;
                if let Some(offset) = offset {
                    write!(f, " at offset {offset}")?;
                }
                write!(
                    f,
                    ": {what}; move this data directory away and restore it from a backup or from the other nodes"
                )
            }
            StorageError::Locked { file, holder } => {
                write!(
                    f,
                    "another process uses this data directory ({file} is held by {holder}); stop it, or choose another directory"
                )
            }
            StorageError::BadSnapshot { index, term, what } => {
                write!(
                    f,
                    "the snapshot of index {index}, term {term} was refused: {what}; nothing of it was taken over"
                )
            }
            StorageError::BadBackup { file, what } => write!(f, "the backup {file} cannot be used: {what}"),
            StorageError::Foreign { directory, what } => write!(f, "data directory {directory}: {what}"),
        }
    }
}

impl std::error::Error for StorageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StorageError::Failed { cause, .. } => Some(cause),
            _ => None,
        }
    }
}
