//! Each scenario on each app.

use anyhow::Result;
use hush_tests::apps::RealApp;
use hush_tests::apps::standins::StandInKind;

use super::fixture::Subject;
use super::{adoption, faults, life};

macro_rules! scenarios_of {
    ($subject:expr; $($module:ident::$scenario:ident),+ $(,)?) => {
        $(
            #[test]
            fn $scenario() -> Result<()> {
                $module::$scenario($subject)
            }
        )+
    };
}

/// What every app must bear.
macro_rules! all_scenarios {
    ($($app:ident = $subject:expr;)+) => {
        $(
            mod $app {
                use super::*;

                scenarios_of! { $subject;
                    life::cold_request_loads_its_model,
                    life::unload_gives_the_memory_back,
                    life::stream_is_never_cut_by_an_unload,
                    life::refused_unload_changes_nothing,
                    life::storm_of_unloads_loses_no_request,
                    life::client_that_leaves_holds_nothing,
                    life::hold_keeps_requests_away_from_the_app,
                    faults::killed_app_breaks_its_streams_and_comes_back,
                    faults::killed_sidecar_leaves_the_app_alone,
                    faults::app_that_restarts_is_a_new_generation,
                    faults::app_that_comes_later_is_found,
                    faults::restarted_sidecar_knows_that_the_model_is_away,
                    adoption::loaded_model_is_adopted,
                }
            }
        )+
    };
}

/// What needs an app that lists its models.
macro_rules! listing_scenarios {
    ($($app:ident = $subject:expr;)+) => {
        $(
            mod $app {
                use super::*;

                scenarios_of! { $subject;
                    adoption::model_that_left_by_itself_comes_back_as_a_new_generation,
                    adoption::model_that_came_by_itself_is_a_new_generation,
                }
            }
        )+
    };
}

all_scenarios! {
    ollama = Subject::StandIn(StandInKind::Ollama);
    llama_server = Subject::StandIn(StandInKind::LlamaServer);
    vllm = Subject::StandIn(StandInKind::Vllm);
    sglang = Subject::StandIn(StandInKind::Sglang);
    triton = Subject::StandIn(StandInKind::Triton);
    comfyui = Subject::StandIn(StandInKind::Comfyui);
    localai = Subject::StandIn(StandInKind::Localai);
    speaches = Subject::StandIn(StandInKind::Speaches);
    a1111 = Subject::StandIn(StandInKind::A1111);
    real_ollama = Subject::Real(RealApp::Ollama);
    real_llama_server = Subject::Real(RealApp::LlamaServer);
    real_triton = Subject::Real(RealApp::Triton);
}

/// What needs an app that starts in a moment and minds nothing.
macro_rules! restart_storms {
    ($($app:ident = $subject:expr;)+) => {
        $(
            mod $app {
                use super::*;

                scenarios_of! { $subject; faults::restarts_in_a_storm_of_unloads_do_no_harm }
            }
        )+
    };
}

restart_storms! {
    storms_ollama = Subject::StandIn(StandInKind::Ollama);
    storms_vllm = Subject::StandIn(StandInKind::Vllm);
    storms_sglang = Subject::StandIn(StandInKind::Sglang);
    storms_triton = Subject::StandIn(StandInKind::Triton);
    storms_comfyui = Subject::StandIn(StandInKind::Comfyui);
}

// SGLang and A1111 do not say what they hold.
listing_scenarios! {
    listing_ollama = Subject::StandIn(StandInKind::Ollama);
    listing_llama_server = Subject::StandIn(StandInKind::LlamaServer);
    listing_vllm = Subject::StandIn(StandInKind::Vllm);
    listing_triton = Subject::StandIn(StandInKind::Triton);
    listing_comfyui = Subject::StandIn(StandInKind::Comfyui);
    listing_localai = Subject::StandIn(StandInKind::Localai);
    listing_speaches = Subject::StandIn(StandInKind::Speaches);
    listing_real_ollama = Subject::Real(RealApp::Ollama);
    listing_real_llama_server = Subject::Real(RealApp::LlamaServer);
    listing_real_triton = Subject::Real(RealApp::Triton);
}
