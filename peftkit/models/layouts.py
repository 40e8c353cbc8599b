"""The layout of each architecture: names of block parts, and the token a classifier reads."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Architecture:
    """The layout of one `model_type`; paths are relative to a block or the base model."""

    attention_output: str
    """The block's last linear layer of attention, before the residual sum."""
    feed_forward_input: str
    """The block's first linear layer of the feed-forward part."""
    feed_forward_output: str
    """The block's last linear layer of the feed-forward part, before the residual sum."""
    reads: str
    """The token that a sequence classifier reads: 'first', 'last', or the last 'eos' of a
    decoder."""
    encoder: str = ""
    """If the first token is read: the part of the base model whose output is read."""
    counts_from_padding: bool = False
    """Whether position ids start after the padding id, as RoBERTa's do."""
    packs: bool = False
    """Whether packed batches are tested to equal padded ones; otherwise batches are padded."""
    attention: tuple[str, ...] = ("self_attn",)
    """The block's attention modules: self-attention, then cross-attention if there is one."""
    query: str = "q_proj"
    """The query projection in each of them; fused projections share one name."""
    key: str = "k_proj"
    value: str = "v_proj"
    gated_input: str = ""
    """Replaces `feed_forward_input` if `config.is_gated_act`."""
    group: str = ""
    """If the model has groups of blocks: the list of blocks in a group."""
    below: tuple[str, ...] = ()
    """Modules of the base that are defined after the blocks, but used before or by all of them."""
    fixed: tuple[str, ...] = ()
    """Ends of the names of parameters that the model's code keeps constant."""
    decoder: "Architecture | None" = None
    """The entry for the decoder's blocks, if there is an encoder too."""


BERT = Architecture(
    attention_output="attention.output.dense",
    feed_forward_input="intermediate.dense",
    feed_forward_output="output.dense",
    reads="first",
    encoder="encoder",
    packs=True,
    attention=("attention",),
    query="self.query",
    key="self.key",
    value="self.value",
)
DISTILBERT = Architecture(
    attention_output="attention.out_lin",
    feed_forward_input="ffn.lin1",
    feed_forward_output="ffn.lin2",
    reads="first",
    encoder="transformer",
    packs=True,
    attention=("attention",),
    query="q_lin",
    key="k_lin",
    value="v_lin",
)
ALBERT = Architecture(
    attention_output="attention.dense",
    feed_forward_input="ffn",
    feed_forward_output="ffn_output",
    reads="first",
    encoder="encoder",
    attention=("attention",),
    query="query",
    key="key",
    value="value",
    group="albert_layers",
    packs=True,
)
DEBERTA = replace(
    BERT,
    packs=False,
    encoder="",  # its base reads the last hidden state, not the encoder's output
    query="self.query_proj",
    key="self.key_proj",
    value="self.value_proj",
    # all blocks share relative position embeddings, their norm and a convolution
    below=("encoder.rel_embeddings", "encoder.LayerNorm", "encoder.conv"),
)
MPNET = replace(
    BERT,
    packs=False,
    counts_from_padding=True,
    attention_output="attention.attn.o",
    query="attn.q",
    key="attn.k",
    value="attn.v",
    below=("encoder.relative_attention_bias",),
)
MODERNBERT = Architecture(
    attention_output="attn.Wo",
    feed_forward_input="mlp.Wi",
    feed_forward_output="mlp.Wo",
    reads="first",
    attention=("attn",),
    query="Wqkv",
    key="Wqkv",
    value="Wqkv",
)
GPT2 = Architecture(
    attention_output="attn.c_proj",
    feed_forward_input="mlp.c_fc",
    feed_forward_output="mlp.c_proj",
    reads="last",
    packs=True,
    attention=("attn",),
    query="c_attn",
    key="c_attn",
    value="c_attn",
)
LLAMA = Architecture("self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj", reads="last", packs=True)
T5 = Architecture(
    attention_output="layer.0.SelfAttention.o",
    feed_forward_input="layer.1.DenseReluDense.wi",
    feed_forward_output="layer.1.DenseReluDense.wo",
    gated_input="layer.1.DenseReluDense.wi_0",
    reads="eos",
    attention=("layer.0.SelfAttention",),
    query="q",
    key="k",
    value="v",
)
T5_DECODER = replace(
    T5,
    feed_forward_input="layer.2.DenseReluDense.wi",
    feed_forward_output="layer.2.DenseReluDense.wo",
    gated_input="layer.2.DenseReluDense.wi_0",
    attention=("layer.0.SelfAttention", "layer.1.EncDecAttention"),
)
BART_BLOCK = Architecture("self_attn.out_proj", "fc1", "fc2", reads="eos")
BART = replace(
    BART_BLOCK,
    below=("encoder.layernorm_embedding", "decoder.layernorm_embedding"),
    decoder=replace(BART_BLOCK, attention=("self_attn", "encoder_attn")),
)

ARCHITECTURES = {
    "bert": BERT,
    "electra": BERT,
    "roberta": replace(BERT, counts_from_padding=True),
    "xlm-roberta": replace(BERT, counts_from_padding=True),
    "distilbert": DISTILBERT,
    "albert": ALBERT,
    "deberta-v2": DEBERTA,
    "mpnet": MPNET,
    "modernbert": MODERNBERT,
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma3_text": LLAMA,
    "t5": replace(T5, decoder=T5_DECODER),
    "bart": BART,
    "mbart": BART,
    "m2m_100": replace(BART, below=()),  # NLLB, too
    # its positions are sinusoids, in parameters that transformers 5.23 never differentiates
    "marian": replace(BART, fixed=("embed_positions.weight",)),
}
"""By `model_type` (SmolLM's is llama, DeBERTa-v3's deberta-v2)."""
