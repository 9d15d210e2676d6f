//! Conversations whose ids transformers wrote; they lie outside of the repository.

use serde_json::Value;

use super::*;
use crate::chat::message::strip;
use crate::test_tokenizers::tokenizers_outside_the_repository;

struct Row {
    messages: Vec<Message>,
    prompt: bool,
    joined: Vec<u32>,
    apart: Dialogue,
}

fn golden() -> Option<(Tokenizer, Vec<Row>)> {
    let folder = tokenizers_outside_the_repository()?.join("bpe4096");
    let tokenizer = Tokenizer::from_file(&folder.join("tokenizer.json")).unwrap();
    let lines = fs_err::read_to_string(folder.join("golden_chat.jsonl")).unwrap();
    Some((tokenizer, lines.lines().map(row).collect()))
}

fn row(line: &str) -> Row {
    let row: Value = serde_json::from_str(line).unwrap();
    let ids = |field: &str| serde_json::from_value::<Vec<u32>>(row[field].clone()).unwrap();
    let message = |message: &Value| {
        let word = message["role"].as_str().unwrap().to_lowercase();
        say(Role::from_name(&word).unwrap(), message["content"].as_str().unwrap())
    };
    Row {
        messages: row["messages"].as_array().unwrap().iter().map(message).collect(),
        prompt: row["add_generation_prompt"].as_bool().unwrap(),
        joined: ids("ids_rendered_then_encoded"),
        apart: Dialogue {
            ids: ids("ids_header_encoded_apart"),
            trained: ids("loss_mask_header_encoded_apart").iter().map(|one| *one == 1).collect(),
        },
    }
}

#[test]
fn outside_the_repository_golden_conversations_apart() {
    let Some((tokenizer, rows)) = golden() else { return };
    assert_eq!(rows.len(), 10);
    let template = ChatTemplate::b158_apart();
    for row in &rows {
        if row.prompt {
            let ids = template.prompt(&tokenizer, &talk(&row.messages)).unwrap();
            assert_eq!(ids, row.apart.ids, "{:?}", row.messages);
        } else {
            let dialogue = template.encode(&tokenizer, &talk(&row.messages)).unwrap();
            assert_eq!(dialogue, row.apart, "{:?}", row.messages);
        }
    }
}

#[test]
fn outside_the_repository_golden_conversations_joined() {
    let Some((tokenizer, rows)) = golden() else { return };
    let published = jinja(
        "{% for m in messages %}{{ m.role|capitalize + ': ' + m.content|trim + '<|eot_id|>' }}\
         {% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}",
    );
    for row in &rows {
        let talk = talk(&row.messages);
        if row.prompt {
            // The golden prompt is the published one, which ends in a space.
            assert_eq!(published.prompt(&tokenizer, &talk).unwrap(), row.joined);
            let ids = ChatTemplate::b158().prompt(&tokenizer, &talk).unwrap();
            let shorter = tokenizer.decode(&row.joined);
            assert_eq!(tokenizer.decode(&ids), shorter.trim_end(), "{:?}", row.messages);
            continue;
        }
        let dialogue = ChatTemplate::b158().encode(&tokenizer, &talk).unwrap();
        assert_eq!(dialogue.ids, row.joined, "{:?}", row.messages);
        assert_eq!(default_as_jinja().encode(&tokenizer, &talk).unwrap(), dialogue);
        assert_eq!(published.encode(&tokenizer, &talk).unwrap().ids, row.joined);
        let said = row.messages.iter().filter(|message| message.role == Assistant);
        let said: String = said.map(|message| format!(" {}", strip(&message.content))).collect();
        let pairs = dialogue.ids.iter().zip(&dialogue.trained);
        let ids: Vec<u32> = pairs.filter(|(_, on)| **on).map(|(id, _)| *id).collect();
        assert_eq!(tokenizer.decode(&ids), said);
    }
}

#[test]
fn outside_the_repository_a_token_across_header_and_content_is_trained() {
    let Some((tokenizer, _)) = golden() else { return };
    let messages = talk(&[say(User, "hi"), say(Assistant, "hello there")]);
    let dialogue = ChatTemplate::b158().encode(&tokenizer, &messages).unwrap();
    assert_eq!(
        show(&tokenizer, &dialogue),
        "<|begin_of_text|>User: hi<|eot_id|>Assistant:« hello there<|eot_id|>»"
    );
}
