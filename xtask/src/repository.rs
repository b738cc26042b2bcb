//! What the rules look at, read once: the files that git knows or would take, their Rust tokens, and what cargo says of the packages.
//!
//! It is a value, so that a test can plant a violation in one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use time::Date;

use crate::tidy::rust::Source;

/// The repository as the rules see it.
pub(crate) struct Repository {
    /// By path, relative to the root, with `/`.
    pub(crate) files: BTreeMap<String, File>,
    pub(crate) packages: Packages,
    pub(crate) today: Date,
}

/// A file in git, or one that git would take.
pub(crate) struct File {
    pub(crate) bytes: u64,
    /// Nothing if it is not UTF-8.
    pub(crate) text: Option<String>,
    /// Of a Rust file.
    pub(crate) source: Option<Source>,
}

/// Every package of the lock file that is built for some platform, ours among them.
#[derive(Default)]
pub(crate) struct Packages {
    pub(crate) all: BTreeMap<PackageId, Package>,
    /// Those of this workspace.
    pub(crate) ours: Vec<PackageId>,
}

pub(crate) type PackageId = String;

/// A package.
#[derive(Clone, Debug, Default)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    pub(crate) description: Option<String>,
    /// Absent: it lies in this repository.
    pub(crate) source: Option<String>,
    pub(crate) features: Vec<String>,
    /// What it is built with, build scripts included.
    pub(crate) needs: Vec<PackageId>,
    /// What only its tests, benches and examples are built with.
    pub(crate) tests_need: Vec<PackageId>,
}

impl Repository {
    /// Reads everything.
    ///
    /// # Errors
    /// Git or cargo cannot be run, or the lock file is not up to date.
    pub(crate) fn read() -> Result<Repository> {
        let root = root();
        let listed = output(Command::new("git").args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "-z",
            "--deduplicate",
        ]))?;
        let mut files = BTreeMap::new();
        for path in listed.split('\0').filter(|path| !path.is_empty()) {
            // What is deleted and not yet committed is gone for us.
            let Ok(bytes) = std::fs::read(root.join(path)) else { continue };
            files.insert(path.to_owned(), File::new(path, bytes)?);
        }
        ensure!(!files.is_empty(), "git lists no files; this works in a clone of the repository");
        Ok(Repository { files, packages: Packages::read()?, today: time::OffsetDateTime::now_utc().date() })
    }

    /// Path and text of every readable file whose path ends so.
    pub(crate) fn texts<'a>(&'a self, suffix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let with_suffix = self.files.iter().filter(move |(path, _)| path.ends_with(suffix));
        with_suffix.filter_map(|(path, file)| Some((path.as_str(), file.text.as_deref()?)))
    }

    /// Path and tokens of every Rust file.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (&str, &Source)> {
        self.files.iter().filter_map(|(path, file)| Some((path.as_str(), file.source.as_ref()?)))
    }

    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path)?.text.as_deref()
    }

    /// Whether a file or a folder of that path exists.
    pub(crate) fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let folder = format!("{path}/");
        path.is_empty()
            || self.files.contains_key(path)
            || self.files.range(folder.clone()..).next().is_some_and(|(first, _)| first.starts_with(&folder))
    }
}

impl File {
    pub(crate) fn new(path: &str, content: Vec<u8>) -> Result<File> {
        let bytes = content.len() as u64;
        let text = String::from_utf8(content).ok();
        let source = match &text {
            Some(text) if path.ends_with(".rs") => Some(Source::parse(path, text)?),
            _ => None,
        };
        Ok(File { bytes, text, source })
    }
}

impl Packages {
    fn read() -> Result<Packages> {
        let json = output(Command::new(cargo()).args(["metadata", "--format-version", "1", "--locked"]))?;
        let metadata: Metadata = serde_json::from_str(&json).context("cargo metadata has another form")?;
        let mut all: BTreeMap<PackageId, Package> = BTreeMap::new();
        for read in metadata.packages {
            let package = Package {
                name: read.name,
                version: read.version,
                license: read.license,
                description: read.description,
                source: read.source,
                features: read.features.into_keys().collect(),
                ..Package::default()
            };
            all.insert(read.id, package);
        }
        for node in metadata.resolve.nodes {
            let package = all.get_mut(&node.id).context("cargo metadata resolves a package that it does not list")?;
            for dependency in node.deps {
                let of_tests = |kind: &DependencyKind| kind.kind.as_deref() == Some("dev");
                if dependency.dep_kinds.iter().any(of_tests) {
                    package.tests_need.push(dependency.pkg.clone());
                }
                if !dependency.dep_kinds.iter().all(of_tests) {
                    package.needs.push(dependency.pkg);
                }
            }
        }
        Ok(Packages { all, ours: metadata.workspace_members })
    }

    /// The packages of this workspace.
    pub(crate) fn ours(&self) -> impl Iterator<Item = &Package> {
        self.ours.iter().filter_map(|id| self.all.get(id))
    }

    /// Everybody else's.
    pub(crate) fn foreign(&self) -> impl Iterator<Item = &Package> {
        self.all.iter().filter(|(id, _)| !self.ours.contains(id)).map(|(_, package)| package)
    }

    pub(crate) fn is_ours(&self, id: &str) -> bool {
        self.ours.iter().any(|ours| ours == id)
    }

    pub(crate) fn name<'a>(&'a self, id: &'a str) -> &'a str {
        self.all.get(id).map_or(id, |package| &package.name)
    }
}

/// The folder that holds the workspace.
pub(crate) fn root() -> PathBuf {
    let xtask = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().map_or(xtask.clone(), PathBuf::from)
}

/// The cargo that runs us.
pub(crate) fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".into())
}

/// What a command run in the root prints.
///
/// # Errors
/// It cannot be run, or fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.current_dir(root()).output().with_context(|| format!("cannot run {shown}"))?;
    ensure!(output.status.success(), "{shown} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).with_context(|| format!("{shown} prints something that is not UTF-8"))
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<ReadPackage>,
    workspace_members: Vec<PackageId>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct ReadPackage {
    id: PackageId,
    name: String,
    version: String,
    license: Option<String>,
    description: Option<String>,
    source: Option<String>,
    features: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: PackageId,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: PackageId,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    kind: Option<String>,
}
