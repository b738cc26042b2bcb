//! One of the compose files of `deploy/docker-compose` in use, under a project name of its own: what a user of the same file keeps is not touched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::docker::{docker, ended, has_compose_plugin, logs, printed};
use crate::image::TAGS;
use crate::process::{Folder, target};
use crate::repository::root;
use crate::walk::eventually;

/// Seconds that containers are given to end.
const STOP_SECONDS: &str = "10";

/// How long containers may take until they are healthy.
const HEALTHY_MAX: Duration = Duration::from_secs(30);

/// A project; nothing is left of it when this is dropped.
pub(crate) struct Project {
    folder: PathBuf,
    name: String,
    /// Variables of services that differ from the file's.
    changes: PathBuf,
    _changes_folder: Folder,
    /// Folders of this machine that services keep their data in, instead of in a volume.
    folders: BTreeMap<&'static str, PathBuf>,
    plugin: bool,
}

/// Where the image keeps its data.
pub(crate) const DATA: &str = "/var/lib/codeq";

/// By service and name: a value, or that there is none.
pub(crate) type Changes = BTreeMap<&'static str, BTreeMap<String, Option<String>>>;

impl Project {
    /// The file of that folder, as nobody has used it before.
    ///
    /// # Errors
    /// There is no such file, or compose does not understand it.
    pub(crate) fn new(folder: &str, services: &[&'static str], name: &str) -> Result<Project> {
        let changes_folder = Folder::new(name)?;
        let project = Project {
            folder: root().join("deploy/docker-compose").join(folder),
            name: name.into(),
            changes: changes_folder.within("changes.json"),
            _changes_folder: changes_folder,
            folders: BTreeMap::new(),
            plugin: has_compose_plugin(),
        };
        project.change(&services.iter().map(|service| (*service, BTreeMap::new())).collect())?;
        project.run(&["config", "--quiet"])?;
        project.forget()?;
        Ok(project)
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Sets variables for the next start of services. JSON is YAML too.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn change(&self, changes: &Changes) -> Result<()> {
        let changed = |(service, variables): (&&'static str, _)| {
            let folder = self.folders.get(service).map(|folder| format!("{}:{DATA}", folder.display()));
            let volumes: Vec<String> = folder.into_iter().collect();
            (*service, json!({ "environment": variables, "volumes": volumes }))
        };
        let services: BTreeMap<&str, _> = changes.iter().map(changed).collect();
        Ok(std::fs::write(&self.changes, json!({ "services": services }).to_string())?)
    }

    /// From its next start on, a service keeps its data in this folder.
    pub(crate) fn keeps_data_in(&mut self, service: &'static str, folder: PathBuf) {
        self.folders.insert(service, folder);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = if self.plugin {
            let mut command = Command::new("docker");
            command.arg("compose");
            command
        } else {
            Command::new("docker-compose")
        };
        command.args(["--project-name", &self.name, "--project-directory"]).arg(&self.folder);
        command.arg("--file").arg(self.folder.join("compose.yaml")).arg("--file").arg(&self.changes);
        command.args(arguments).current_dir(target());
        command.env("CODEQ_IMAGE", TAGS[1]).env("CODEQ_DOCKERFILE", "deploy/Dockerfile.scratch");
        command
    }

    /// `docker compose` with these arguments. Returns what it prints.
    ///
    /// # Errors
    /// It fails.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        printed(&mut self.command(arguments))
    }

    /// A container beside the others, with the volumes and variables of a service, that ends by itself.
    ///
    /// # Errors
    /// It cannot be run.
    pub(crate) fn once(&self, service: &str) -> Result<Output> {
        let output = ended(&mut self.command(&["run", "--rm", "--no-deps", service]))?;
        Ok(output)
    }

    /// Starts services, and those that they need not.
    ///
    /// # Errors
    /// One of them cannot be started.
    pub(crate) fn up(&self, services: &[&str]) -> Result<()> {
        self.run(&[&["up", "--detach", "--no-build", "--no-deps"], services].concat()).map(|_| ())
    }

    /// `docker compose up --detach --wait`, also where compose is too old to know the last word.
    ///
    /// # Errors
    /// They are not healthy in time.
    pub(crate) fn up_and_wait(&self, services: &[&str]) -> Result<()> {
        if self.plugin {
            return self
                .run(&[&["up", "--detach", "--no-build", "--no-deps", "--wait"], services].concat())
                .map(|_| ());
        }
        self.up(services)?;
        eventually(HEALTHY_MAX, || {
            for service in services {
                let health = self.look(service, "{{.State.Health.Status}}")?;
                ensure!(health == "healthy", "{service} is {health}");
            }
            Ok(())
        })
    }

    /// Stops services, which must end with 0.
    ///
    /// # Errors
    /// One of them ends with something else.
    pub(crate) fn stop(&self, services: &[&str]) -> Result<()> {
        self.run(&[&["stop", "--timeout", STOP_SECONDS], services].concat())?;
        for service in services {
            let status = self.look(service, "{{.State.ExitCode}}")?;
            ensure!(status == "0", "{service} has ended with {status}:\n{}", self.log(service)?.join("\n"));
        }
        Ok(())
    }

    /// `docker compose down`, which keeps the volumes that have names.
    ///
    /// # Errors
    /// It fails.
    pub(crate) fn down(&self) -> Result<()> {
        self.run(&["down", "--timeout", STOP_SECONDS]).map(|_| ())
    }

    /// Removes everything of the project, its volumes too.
    ///
    /// # Errors
    /// It fails.
    pub(crate) fn forget(&self) -> Result<()> {
        self.run(&["down", "--volumes", "--timeout", "0"]).map(|_| ())
    }

    /// Removes a service's container and its volumes.
    ///
    /// # Errors
    /// It runs.
    pub(crate) fn remove_volumes(&self, service: &str) -> Result<()> {
        self.run(&["rm", "--force", "-v", service])?;
        let prefix = format!("{}_{service}-", self.name);
        let volumes = self.volumes()?;
        for volume in volumes.iter().filter(|volume| volume.starts_with(&prefix)) {
            docker(&["volume", "rm", volume])?;
        }
        Ok(())
    }

    /// The project's volumes.
    ///
    /// # Errors
    /// Docker does not answer.
    pub(crate) fn volumes(&self) -> Result<Vec<String>> {
        let of_project = format!("label=com.docker.compose.project={}", self.name);
        let listed = docker(&["volume", "ls", "--quiet", "--filter", &of_project])?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    /// The container of a service.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn container(&self, service: &str) -> Result<String> {
        let of_project = format!("label=com.docker.compose.project={}", self.name);
        let of_service = format!("label=com.docker.compose.service={service}");
        let not_once = "label=com.docker.compose.oneoff=False";
        let filters = ["--filter", &of_project, "--filter", &of_service, "--filter", not_once];
        let listed = docker(&[&["ps", "--all", "--quiet", "--no-trunc"], &filters[..]].concat())?;
        match listed.lines().collect::<Vec<_>>()[..] {
            [container] => Ok(container.to_owned()),
            _ => bail!("{service} has the containers {listed:?}"),
        }
    }

    /// What Docker knows of a service's container, by a template of its own.
    ///
    /// # Errors
    /// There is no such container.
    pub(crate) fn look(&self, service: &str, template: &str) -> Result<String> {
        Ok(docker(&["inspect", "--format", template, &self.container(service)?])?.trim().to_owned())
    }

    /// What a service has printed since it was last started.
    ///
    /// # Errors
    /// There is no such container.
    pub(crate) fn log(&self, service: &str) -> Result<Vec<String>> {
        let since = self.look(service, "{{.State.StartedAt}}")?;
        logs(&self.container(service)?, Some(&since))
    }

    /// `docker exec` in a service's container.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn exec(&self, service: &str, arguments: &[&str]) -> Result<Output> {
        let container = self.container(service)?;
        ended(Command::new("docker").args(["exec", &container]).args(arguments))
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        // Whoever reads the output sees what is left, and `docker compose down` removes it.
        let _ = self.forget();
    }
}

/// Whether compose understands every file of that folder.
///
/// # Errors
/// It does not.
pub(crate) fn check_files() -> Result<usize> {
    let folder = root().join("deploy/docker-compose");
    let mut count = 0;
    for entry in std::fs::read_dir(&folder)? {
        let file = entry?.path().join("compose.yaml");
        if file.is_file() {
            check_file(&file)?;
            count += 1;
        }
    }
    Ok(count)
}

fn check_file(file: &Path) -> Result<()> {
    let (program, first) = if has_compose_plugin() { ("docker", Some("compose")) } else { ("docker-compose", None) };
    let mut command = Command::new(program);
    command.args(first).arg("--file").arg(file).args(["config", "--quiet"]);
    printed(&mut command).map(|_| ()).with_context(|| file.display().to_string())
}
