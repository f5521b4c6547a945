//! One table of policies, two judges: the offline check and the API server must agree.

use anyhow::{Context, Result};
use hush_controller::policies;
use hush_tests::cases::{self, Case};
use hush_tests::cluster::Namespace;
use hush_tests::fixtures;
use kube::Client;
use serde_json::Value;

use crate::definitions::with_definitions;

/// Everything that the offline check complains of.
fn offline(object: &Value) -> Result<Option<String>> {
    let found = policies::parse(&serde_yaml::to_string(object)?).err();
    Ok(found.map(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
}

/// What the API server complains of, asked as kubectl asks.
async fn api_server(client: &Client, namespace: &str, plural: &str, object: &Value) -> Result<Option<String>> {
    let place = if plural == "gpumodelpolicies" { format!("namespaces/{namespace}/") } else { String::new() };
    let version = object["apiVersion"].as_str().context("no `apiVersion`")?;
    let path = format!("/apis/{version}/{place}{plural}?dryRun=All&fieldValidation=Strict");
    let request =
        http::Request::post(path).header("Content-Type", "application/json").body(object.to_string().into_bytes())?;
    match client.request::<Value>(request).await {
        Ok(_) => Ok(None),
        Err(kube::Error::Api(status)) if status.code < 500 => Ok(Some(status.message.clone())),
        Err(error) => Err(error.into()),
    }
}

/// What is wrong with a verdict; `None`: it is as it must be.
fn objection(case: &Case, judge: &str, accepts: bool, complaint: Option<&String>) -> Option<String> {
    let name = &case.name;
    match complaint {
        None if accepts => None,
        None => Some(format!("{name}: {judge} accepts it")),
        Some(complaint) if accepts => Some(format!("{name}: {judge} refuses it: {complaint}")),
        Some(complaint) => {
            let missing: Vec<_> = case.says.iter().filter(|word| !complaint.contains(*word)).collect();
            (!missing.is_empty()).then(|| format!("{name}: {judge} does not say {missing:?}: {complaint}"))
        }
    }
}

#[tokio::test]
async fn both_judges_agree_on_every_case() -> Result<()> {
    let plane = with_definitions().await?;
    let mut cluster: Option<(Namespace, Client)> = None;
    if let Some(plane) = plane {
        cluster = Some((plane.namespace("cases", &[]).await?, plane.admin()?));
    }
    let mut objections = Vec::new();
    let cases = cases::all()?;
    for case in &cases {
        for version in hush_crds::API_VERSIONS {
            let mut object = case.object.clone();
            object["apiVersion"] = version.into();
            let complaint = offline(&object)?;
            let judge = format!("the offline check of {version}");
            objections.extend(objection(case, &judge, case.good(), complaint.as_ref()));
            if let Some((namespace, client)) = &cluster {
                let complaint = api_server(client, &namespace.name, case.plural(), &object).await?;
                let accepts = case.good() || case.api_accepts;
                let judge = format!("the API server in {version}");
                objections.extend(objection(case, &judge, accepts, complaint.as_ref()));
            }
        }
    }
    assert!(objections.is_empty(), "{} of {} cases:\n{}", objections.len(), cases.len(), objections.join("\n"));
    Ok(())
}

/// The policies of the documentation and of the worlds.
#[tokio::test]
async fn every_example_is_accepted() -> Result<()> {
    let Some(plane) = with_definitions().await? else { return Ok(()) };
    let (namespace, client) = (plane.namespace("examples", &[]).await?.name, plane.admin()?);
    let mut examples: Vec<Value> = Vec::new();
    let page = std::fs::read_to_string(fixtures::workspace().join("docs/policies.md"))?;
    for block in page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        examples.push(serde_yaml::from_str(block)?);
    }
    for world in std::fs::read_dir(fixtures::workspace().join("controller/tests/plan-cases"))? {
        let world: Value = serde_yaml::from_str(&std::fs::read_to_string(world?.path())?)?;
        examples.extend(world["policies"].as_array().into_iter().flatten().cloned());
    }
    assert!(examples.len() > 12, "{}", examples.len());
    for mut example in examples {
        let cluster = example["kind"] == "ClusterGpuModelPolicy";
        let plural = if cluster { "clustergpumodelpolicies" } else { "gpumodelpolicies" };
        if !cluster {
            // Their own namespaces are not there.
            example["metadata"].as_object_mut().context("no metadata")?.remove("namespace");
        }
        assert_eq!(offline(&example)?, None, "{example}");
        assert_eq!(api_server(&client, &namespace, plural, &example).await?, None, "{example}");
    }
    Ok(())
}
