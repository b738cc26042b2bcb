//! `cargo xtask chart`: the Helm chart is rendered, and what it renders is run: each pod as a container with the rendered arguments, variables,
//! user, rights, volumes and names, and asked by the rendered probes. Kubernetes itself is not needed, and not tried: what schedules pods and
//! gives them volumes is its own business.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value, json};

use crate::docker::{Engine, docker, logs, printed};
use crate::image::{TAGS, build};
use crate::process::{build_codeq, target};
use crate::repository::root;
use crate::walk::{eventually, send_as};

#[derive(Args)]
pub(crate) struct ChartArgs {
    /// The program that goes into the image. Absent: it is built as it is shipped.
    #[arg(long)]
    program: Option<PathBuf>,
}

/// Built by Go where no `helm` is installed.
const HELM: &str = "helm.sh/helm/v3/cmd/helm@v3.16.4";

const RELEASE: &str = "queue";
const NAMESPACE: &str = "demo";

/// The Kubernetes that is rendered for.
const KUBERNETES: &str = "1.29.0";

/// What the Secret has that the chart asks for: its keys are variables.
const SECRET: [(&str, &str); 5] = [
    ("CODEQ_CLUSTER_SECRET", "a-secret-of-the-peers-in-a-test"),
    ("PRODUCER_AUTH_PROVIDER", "static"),
    (
        "PRODUCER_AUTH_CONFIG",
        r#"{"token":"a-token-of-producers","subject":"shop","raw":{"tenantId":"acme","clusterRole":"operator"}}"#,
    ),
    ("WORKER_AUTH_PROVIDER", "static"),
    (
        "WORKER_AUTH_CONFIG",
        r#"{"token":"a-token-of-workers","subject":"w","eventTypes":["*"],"raw":{"tenantId":"acme"}}"#,
    ),
];

const TOKEN: &str = "a-token-of-producers";

/// From the start of all pods to a cluster.
const FORMED_MAX: Duration = Duration::from_secs(30);

/// Renders the chart and runs it.
///
/// # Errors
/// It cannot be rendered, what is rendered does not run, or runs as something else.
pub(crate) fn run(args: &ChartArgs) -> Result<()> {
    let helm = helm()?;
    let chart = root().join("deploy/helm/codeq");
    printed(Command::new(&helm).arg("lint").arg(&chart))?;
    let rendered = render(&helm, &[])?;
    let set = only(&rendered, "StatefulSet")?;
    println!("rendered: {} objects", rendered.len());
    check_services(&rendered, set)?;
    let program = args.program.clone().map_or_else(build_codeq, Ok)?;
    let _engine = Engine::running()?;
    build(&program)?;
    let pods = Pods::start(set)?;
    let begun = Instant::now();
    pods.formed(pods.count())?;
    println!("{} pods: ready, one leader, after {:.1} s", pods.count(), begun.elapsed().as_secs_f64());
    pods.differences()?;
    println!("names, addresses, variables, user, rights and volumes are those that are rendered");
    pods.survive_a_deletion()?;
    println!("a pod that is deleted comes back with its volume as the member that it was");
    let more = render(&helm, &["--set", &format!("replicas={}", pods.count() + 1)])?;
    let pods = pods.grow(only(&more, "StatefulSet")?)?;
    println!("one replica more: {} voters", pods.count());
    pods.stop()?;
    println!("all end with 0 within their grace period");
    Ok(())
}

/// The program that renders.
fn helm() -> Result<PathBuf> {
    let tools = target().join("tools");
    let own = tools.join("helm");
    let works =
        |path: &PathBuf| Command::new(path).args(["version", "--short"]).output().is_ok_and(|it| it.status.success());
    if let Some(helm) = [PathBuf::from("helm"), own.clone()].into_iter().find(works) {
        return Ok(helm);
    }
    println!("building helm");
    std::fs::create_dir_all(&tools)?;
    let go = printed(Command::new("go").args(["install", HELM]).env("GOBIN", &tools).current_dir(&tools));
    go.context("there is neither helm nor a Go that builds it")?;
    Ok(own)
}

fn render(helm: &PathBuf, more: &[&str]) -> Result<Vec<Value>> {
    let chart = root().join("deploy/helm/codeq");
    let mut command = Command::new(helm);
    command.args(["template", RELEASE]).arg(chart).args(["--namespace", NAMESPACE, "--kube-version", KUBERNETES]);
    let text = printed(command.args(more))?;
    let documents =
        Yaml::load_from_str(&text).map_err(|error| anyhow::anyhow!("what is rendered is no YAML: {error}"))?;
    documents.iter().map(from_yaml).filter(|value| !matches!(value, Ok(Value::Null))).collect()
}

fn from_yaml(yaml: &Yaml<'_>) -> Result<Value> {
    Ok(match yaml {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(flag)) => json!(flag),
        Yaml::Value(Scalar::Integer(number)) => json!(number),
        Yaml::Value(Scalar::FloatingPoint(number)) => json!(number.into_inner()),
        Yaml::Value(Scalar::String(text)) => json!(text),
        Yaml::Sequence(items) => Value::Array(items.iter().map(from_yaml).collect::<Result<_>>()?),
        Yaml::Mapping(pairs) => {
            let mut map = Map::new();
            for (key, value) in pairs {
                let Yaml::Value(Scalar::String(key)) = key else { bail!("{key:?} is a key") };
                map.insert(key.to_string(), from_yaml(value)?);
            }
            Value::Object(map)
        }
        other => bail!("{other:?} is rendered"),
    })
}

/// The only object of a kind.
fn only<'a>(rendered: &'a [Value], kind: &str) -> Result<&'a Value> {
    let found: Vec<&Value> = rendered.iter().filter(|object| object["kind"] == kind).collect();
    ensure!(found.len() == 1, "{} objects are of kind {kind}", found.len());
    Ok(found[0])
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("{value} is no text"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The services choose the pods, by ports that these have; one of them gives the pods their names.
fn check_services(rendered: &[Value], set: &Value) -> Result<()> {
    let pod = &set["spec"]["template"];
    let labels = &pod["metadata"]["labels"];
    let ports = list(&pod["spec"]["containers"][0]["ports"]);
    let mut names = Vec::new();
    for service in rendered.iter().filter(|object| object["kind"] == "Service") {
        let name = text(&service["metadata"]["name"])?;
        let chosen = service["spec"]["selector"].as_object().context("a service chooses pods")?;
        ensure!(chosen.iter().all(|(label, value)| labels[label] == *value), "{name} chooses other pods: {service}");
        for port in list(&service["spec"]["ports"]) {
            let is_there = ports.iter().any(|known| known["name"] == port["targetPort"]);
            ensure!(is_there, "{name} leads to {port}, which pods do not have");
        }
        names.push(name);
    }
    let headless = text(&set["spec"]["serviceName"])?;
    ensure!(names.contains(&headless), "pods are named by {headless}, and services are {names:?}");
    let budget = only(rendered, "PodDisruptionBudget")?;
    ensure!(budget["spec"]["maxUnavailable"] == 1, "{budget}");
    println!("services {} choose the pods, by ports that these have", names.join(", "));
    Ok(())
}

/// What a pod is to run as.
struct Pod {
    name: String,
    /// As Docker's names of the container and of its volume.
    container: String,
    /// What `docker create` is told.
    arguments: Vec<String>,
    variables: BTreeMap<String, String>,
}

/// The pods of a StatefulSet, as containers in a network of their own; they are gone when this is dropped.
struct Pods {
    network: String,
    spec: Value,
    pods: Vec<Pod>,
}

impl Pods {
    fn start(set: &Value) -> Result<Pods> {
        let network = format!("codeq-chart-{}", std::process::id());
        docker(&["network", "create", &network])?;
        let mut pods = Pods { network, spec: set["spec"].clone(), pods: Vec::new() };
        let replicas = set["spec"]["replicas"].as_u64().context("it has replicas")?;
        for place in 0..replicas {
            pods.add(set, place)?;
        }
        Ok(pods)
    }

    fn count(&self) -> usize {
        self.pods.len()
    }

    fn add(&mut self, set: &Value, place: u64) -> Result<()> {
        let pod = pod(set, place, &self.network)?;
        for volume in list(&set["spec"]["volumeClaimTemplates"]) {
            docker(&["volume", "create", &format!("{}-{}", pod.container, text(&volume["metadata"]["name"])?)])?;
        }
        self.pods.push(pod);
        self.run(self.pods.len() - 1)
    }

    fn run(&self, place: usize) -> Result<()> {
        let arguments: Vec<&str> = self.pods[place].arguments.iter().map(String::as_str).collect();
        docker(&[&["run", "--detach"], &arguments[..]].concat()).map(|_| ())
    }

    /// Where a pod's port of this name is reached.
    fn addr(&self, place: usize, port: &str) -> Result<SocketAddr> {
        let look = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address = docker(&["inspect", "--format", look, &self.pods[place].container])?;
        let ports = list(&self.spec["template"]["spec"]["containers"][0]["ports"]);
        let number = ports.iter().find(|known| known["name"] == port).map(|known| known["containerPort"].clone());
        let number = number.with_context(|| format!("no port is called {port}"))?;
        Ok(format!("{}:{number}", address.trim()).parse()?)
    }

    /// Asks a pod by a probe of its container.
    fn probe(&self, place: usize, name: &str) -> Result<u16> {
        let probe = &self.spec["template"]["spec"]["containers"][0][name]["httpGet"];
        let addr = self.addr(place, text(&probe["port"])?)?;
        Ok(send_as(addr, None, "GET", text(&probe["path"])?, "")?.status)
    }

    fn nodes(&self, place: usize) -> Result<Value> {
        let answer = send_as(self.addr(place, "http")?, Some(TOKEN), "GET", "/cluster/nodes", "")?;
        ensure!(answer.status == 200, "{answer}");
        answer.json()
    }

    /// Waits until every pod is ready by its probes, and all see so many voters and the same leader.
    fn formed(&self, voters: usize) -> Result<()> {
        for (place, pod) in self.pods.iter().enumerate() {
            let is_formed = eventually(FORMED_MAX, || {
                for name in ["startupProbe", "livenessProbe", "readinessProbe"] {
                    let status = self.probe(place, name)?;
                    ensure!(status == 200, "{name} of {} says {status}", pod.name);
                }
                let nodes = self.nodes(place)?;
                ensure!(nodes["quorum"]["voters"] == voters && nodes["leader"].is_string(), "{nodes}");
                Ok(())
            });
            is_formed.with_context(|| logs(&pod.container, None).unwrap_or_default().join("\n"))?;
        }
        Ok(())
    }

    /// What runs is what is rendered.
    fn differences(&self) -> Result<()> {
        let container = &self.spec["template"]["spec"]["containers"][0];
        for (place, pod) in self.pods.iter().enumerate() {
            let runs: Value = serde_json::from_str(&docker(&["inspect", &pod.container])?)?;
            let runs = &runs[0];
            let variables: Vec<&str> = list(&runs["Config"]["Env"]).iter().filter_map(Value::as_str).collect();
            for (name, value) in &pod.variables {
                ensure!(variables.contains(&format!("{name}={value}").as_str()), "{} lacks {name}={value}", pod.name);
            }
            ensure!(runs["Config"]["Cmd"] == container["args"], "it runs {}", runs["Config"]["Cmd"]);
            ensure!(runs["Config"]["Image"] == image(container)?, "it runs {}", runs["Config"]["Image"]);
            ensure!(runs["HostConfig"]["ReadonlyRootfs"] == true, "its root can be written");
            for mount in list(&container["volumeMounts"]) {
                let is_there = |known: &Value| known["Destination"] == mount["mountPath"];
                let path = text(&mount["mountPath"])?;
                let temporary = runs["HostConfig"]["Tmpfs"].get(path).is_some();
                ensure!(temporary || list(&runs["Mounts"]).iter().any(is_there), "{} has no {path}", pod.name);
            }
            // By what the node says of itself, at another node.
            let seen = self.nodes((place + 1) % self.count())?;
            let own = list(&seen["nodes"]).iter().find(|node| node["name"] == pod.name.as_str());
            let own = own.with_context(|| format!("{} is no member: {seen}", pod.name))?;
            for (field, variable) in [("raftAddr", "CODEQ_RAFT_ADVERTISE"), ("httpAddr", "CODEQ_HTTP_ADVERTISE")] {
                ensure!(own[field] == pod.variables[variable].as_str(), "{field} of {} is {}", pod.name, own[field]);
            }
            let status = send_as(self.addr(place, "http")?, Some(TOKEN), "GET", "/cluster/status", "")?.json()?;
            let groups = list(&status["groups"]).len().to_string();
            ensure!(groups == pod.variables["CODEQ_SHARDS"], "{groups} groups");
            let unknown = send_as(self.addr(place, "http")?, None, "GET", "/cluster/nodes", "")?.status;
            ensure!(unknown == 401, "without a token the answer is {unknown}");
        }
        Ok(())
    }

    /// Deletes the pod that leads, and makes it again with its volume.
    fn survive_a_deletion(&self) -> Result<()> {
        let task = json!({ "command": "CHART", "payload": 1 }).to_string();
        let before = self.nodes(0)?;
        let leader = text(&before["leader"])?;
        let place = self.pods.iter().position(|pod| pod.name == leader).context("a pod leads")?;
        docker(&["rm", "--force", &self.pods[place].container])?;
        let other = (place + 1) % self.count();
        eventually(FORMED_MAX, || {
            let answer = send_as(self.addr(other, "http")?, Some(TOKEN), "POST", "/v1/codeq/tasks", &task)?;
            ensure!(answer.status == 202, "{answer}");
            Ok(())
        })?;
        self.run(place)?;
        self.formed(self.count())?;
        let id = |nodes: &Value| {
            list(&nodes["nodes"]).iter().find(|node| node["name"] == leader).map(|node| node["id"].clone())
        };
        ensure!(id(&self.nodes(place)?) == id(&before), "another member has taken its name");
        Ok(())
    }

    /// A pod more than founders.
    fn grow(mut self, set: &Value) -> Result<Pods> {
        self.spec = set["spec"].clone();
        let next = self.count() as u64;
        self.add(set, next)?;
        self.formed(self.count())?;
        Ok(self)
    }

    /// As Kubernetes ends pods.
    fn stop(&self) -> Result<()> {
        let grace = self.spec["template"]["spec"]["terminationGracePeriodSeconds"].to_string();
        for pod in &self.pods {
            docker(&["stop", "--time", &grace, &pod.container])?;
            let status = docker(&["inspect", "--format", "{{.State.ExitCode}}", &pod.container])?;
            ensure!(status.trim() == "0", "{} has ended with {}", pod.name, status.trim());
        }
        Ok(())
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        // What is gone already is all that is wanted.
        for pod in &self.pods {
            let _ = docker(&["rm", "--force", &pod.container]);
            for volume in list(&self.spec["volumeClaimTemplates"]) {
                let name = volume["metadata"]["name"].as_str().unwrap_or_default();
                let _ = docker(&["volume", "rm", "--force", &format!("{}-{name}", pod.container)]);
            }
        }
        let _ = docker(&["network", "rm", &self.network]);
    }
}

/// The rendered image, as it is called here.
fn image(container: &Value) -> Result<String> {
    let image = text(&container["image"])?;
    ensure!(TAGS.contains(&image), "{image} is rendered, and {} are made", TAGS.join(", "));
    Ok(image.into())
}

/// What a pod of the set is run as.
fn pod(set: &Value, place: u64, network: &str) -> Result<Pod> {
    let name = format!("{}-{place}", text(&set["metadata"]["name"])?);
    let spec = &set["spec"]["template"]["spec"];
    let containers = list(&spec["containers"]);
    ensure!(containers.len() == 1, "a pod has {} containers", containers.len());
    let container = &containers[0];
    let mut variables: BTreeMap<String, String> = BTreeMap::new();
    for source in list(&container["envFrom"]) {
        ensure!(source["secretRef"]["name"] == "codeq", "variables come from {source}");
        variables.extend(SECRET.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    for variable in list(&container["env"]) {
        let field = &variable["valueFrom"]["fieldRef"]["fieldPath"];
        let value = match field.as_str() {
            Some("metadata.name") => name.clone(),
            Some(other) => bail!("a variable is made of {other}"),
            // Variables that stand before it are replaced.
            None => variables.iter().fold(text(&variable["value"])?.to_owned(), |value, (known, is)| {
                value.replace(&format!("$({known})"), is)
            }),
        };
        ensure!(!value.contains("$("), "{} is {value}", variable["name"]);
        variables.insert(text(&variable["name"])?.into(), value);
    }
    let service = format!("{}.{NAMESPACE}.svc", text(&set["spec"]["serviceName"])?);
    let docker_name = format!("{network}-{place}");
    let mut arguments: Vec<String> =
        ["--name", &docker_name, "--hostname", &name, "--network", network].map(Into::into).into();
    // The service without an address of its own has each pod's, and each pod has a name in it.
    for alias in [&service, &format!("{name}.{service}")] {
        arguments.extend(["--network-alias".into(), alias.clone()]);
    }
    for (name, value) in &variables {
        arguments.extend(["--env".into(), format!("{name}={value}")]);
    }
    let pod_rights = &spec["securityContext"];
    let rights = &container["securityContext"];
    ensure!(pod_rights["runAsNonRoot"] == true && rights["allowPrivilegeEscalation"] == false, "{pod_rights} {rights}");
    arguments.extend(["--user".into(), format!("{}:{}", pod_rights["runAsUser"], pod_rights["runAsGroup"])]);
    arguments.extend(["--security-opt".into(), "no-new-privileges".into()]);
    if rights["readOnlyRootFilesystem"] == true {
        arguments.push("--read-only".into());
    }
    for dropped in list(&rights["capabilities"]["drop"]) {
        arguments.extend(["--cap-drop".into(), text(dropped)?.into()]);
    }
    if let Some(memory) = container["resources"]["limits"]["memory"].as_str() {
        arguments.extend(["--memory".into(), memory.replace("Gi", "g").replace("Mi", "m")]);
    }
    for mount in list(&container["volumeMounts"]) {
        let (volume, path) = (text(&mount["name"])?, text(&mount["mountPath"])?);
        let is_named = |known: &&Value| known["name"] == volume || known["metadata"]["name"] == volume;
        if list(&spec["volumes"]).iter().any(|known| is_named(&known) && known["emptyDir"].is_object()) {
            arguments.extend(["--tmpfs".into(), path.into()]);
        } else {
            ensure!(
                list(&set["spec"]["volumeClaimTemplates"]).iter().any(|known| is_named(&known)),
                "{mount} is no volume"
            );
            arguments.extend(["--volume".into(), format!("{docker_name}-{volume}:{path}")]);
        }
    }
    arguments.push(image(container)?);
    for argument in list(&container["args"]) {
        arguments.push(text(argument)?.into());
    }
    Ok(Pod { name, container: docker_name, arguments, variables })
}
