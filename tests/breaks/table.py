"""One-line bugs that a careless change could bring, each against a promise to the user.

`python -m tests.breaks.run` plants one after the other and runs the tests that are meant to catch
it. They were written by somebody who did not write the tests.
"""

import dataclasses
import hashlib
import json


@dataclasses.dataclass(frozen=True)
class Break:
    """One bug.

    Attributes:
      name: of its own, in snake_case.
      file: from the root of the repository.
      old: text that stands in the file once; `new` is put in its place.
      tests: that are meant to catch it, the cheapest first: arguments of pytest, each a file or a
        test, or "FILE -k EXPRESSION".
      promise: what the user was promised, which it breaks.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    promise: str

    @property
    def digest(self) -> str:
        """Of what a result holds for: the change, and the tests that are to catch it."""
        text = json.dumps([self.file, self.old, self.new, self.tests])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _golden(*fixtures: str) -> tuple[str, ...]:
    return tuple(f"tests/parity/test_golden.py::test_float64[{name}]" for name in fixtures)


def _fault(name: str) -> str:
    test = "test_a_fault_is_found_placed_and_explained"
    return f"tests/parity/test_faults.py::{test}[{name}]"


_LAYOUTS = "tests/training/test_layouts.py::test_same_run_as_on_one_device"
_DISPATCH = "tests/training/test_dispatch.py"
_LOOP_SIGNAL = "tests/training/test_loop.py::test_signal_saves_and_resume_gives_the_same_run"

# ---------------------------------------------------------------------- the numbers of the designs

_NUMBERS = [
    Break(
        "average_pool_takes_the_class_token",
        "vit_jax/models/vit.py",
        "patches = tokens[:, self.num_prefix_tokens :]",
        "patches = tokens",
        _golden("tiny_timm_vit_gap"),
        "global_pool='avg' is the mean over the patch tokens alone, as timm's",
    ),
    Break(
        "mlp_behind_the_first_norm",
        "vit_jax/layers/block.py",
        "self.mlp(self.norm2(x), key=mlp_key)",
        "self.mlp(self.norm1(x), key=mlp_key)",
        _golden("tiny_timm_vit"),
        "a block is x + attn(norm1(x)), then x + mlp(norm2(x))",
    ),
    Break(
        "gelu_in_its_tanh_form",
        "vit_jax/layers/mlp.py",
        "approximate=False",
        "approximate=True",
        (
            "tests/layers/test_token_transformer.py::test_fixture_float64",
            *_golden("tiny_timm_vit"),
        ),
        "GELU is the exact, erf form, which is PyTorch's default",
    ),
    Break(
        "keys_behind_the_norm_of_queries",
        "vit_jax/layers/attention.py",
        "q, k = self.q_norm(q), self.k_norm(k)",
        "q, k = self.q_norm(q), self.q_norm(k)",
        _golden("tiny_timm_vit_reg_qknorm"),
        "qk_norm norms queries and keys each by a LayerNorm of its own",
    ),
    Break(
        "distilled_model_answers_with_one_head",
        "vit_jax/models/vit.py",
        "return (x + x_dist) / 2 if self.deterministic else (x, x_dist)",
        "return x if self.deterministic else (x, x_dist)",
        (
            "tests/models/test_heads.py"
            "::test_distilled_returns_both_in_train_and_the_mean_in_eval_mode",
            "tests/parity/test_golden.py::test_heads_of_distilled_models[tiny_timm_deit_distilled]",
        ),
        "a distilled model's answer in eval mode is the mean of its two heads",
    ),
    Break(
        "layer_scale_of_the_other_branch",
        "vit_jax/layers/block.py",
        "scaled(self.ls2, self.mlp(",
        "scaled(self.ls1, self.mlp(",
        _golden("tiny_timm_deit3"),
        "DeiT III scales both branches, each by factors of its own",
    ),
    Break(
        "representation_layer_without_tanh",
        "vit_jax/layers/mlp.py",
        "return jnp.tanh(self.fc(x))",
        "return self.fc(x)",
        _golden("tiny_vitpy_repr_nobias"),
        "representation_size is a Linear and a tanh before the head",
    ),
    Break(
        "performer_exchanges_keys_and_queries",
        "vit_jax/layers/performer.py",
        "k, q, v = self.keys_queries_values(x)",
        "q, k, v = self.keys_queries_values(x)",
        ("tests/layers/test_performer.py::test_fixture_float64", *_golden("tiny_t2t_performer")),
        "kqv of T2T's performer holds keys, queries and values in this order",
    ),
    Break(
        "performer_eps_without_the_number_of_features",
        "vit_jax/layers/performer.py",
        "scaled_eps = eps * features.shape[0] * jnp.exp(",
        "scaled_eps = eps * jnp.exp(",
        ("tests/layers/test_performer.py::test_linear_attention_is_its_formula",),
        "linear attention is q'(k'^T v) / (q' . sum(k') + eps), whatever cancels inside",
    ),
    Break(
        "token_attention_scaled_by_its_output",
        "vit_jax/layers/token_transformer.py",
        "self.scale = dim**-0.5 if",
        "self.scale = out_dim**-0.5 if",
        (
            "tests/layers/test_token_transformer.py::test_fixture_float64",
            *_golden("tiny_t2t_transformer"),
        ),
        "the token transformer's scores are scaled by the width of its input, as the release's",
    ),
    Break(
        "relu_between_the_convolutions_of_t2t",
        "vit_jax/layers/tokens_to_token.py",
        "self.soft_split1(self.soft_split0(images))",
        "self.soft_split1(jax.nn.relu(self.soft_split0(images)))",
        _golden("tiny_t2t_convolution"),
        "tokens_type='convolution' has three convolutions and nothing between them",
    ),
    Break(
        "squeeze_leaves_out_the_class_token",
        "vit_jax/layers/squeeze_excite.py",
        "mean = x.mean(axis=1, keepdims=True)",
        "mean = x[:, 1:].mean(axis=1, keepdims=True)",
        ("tests/layers/test_squeeze_excite.py::test_fixture_float64", *_golden("tiny_t2t_se")),
        "squeeze-and-excite takes the mean over all tokens, the class token included",
    ),
    Break(
        "dense_block_appends_to_its_output",
        "vit_jax/models/t2t_vit_dense.py",
        "jnp.concatenate([x, self.dense_linear(new)], axis=-1)",
        "jnp.concatenate([new, self.dense_linear(new)], axis=-1)",
        _golden("tiny_t2t_dense"),
        "a dense block appends its features to its input",
    ),
    Break(
        "ghost_mlp_has_one_copy_twice",
        "vit_jax/layers/ghost.py",
        "gelu(self.cheap_operation3(first))",
        "gelu(self.cheap_operation2(first))",
        _golden("tiny_t2t_ghost"),
        "the ghost MLP makes two cheap copies, each by an operation of its own",
    ),
    Break(
        "resnext_with_six_heads",
        "vit_jax/models/t2t_vit.py",
        '"t2t_vit_14_resnext": _variant(384, 14, 32, 3.0)',
        '"t2t_vit_14_resnext": _variant(384, 14, 6, 3.0)',
        (
            "tests/models/test_t2t_vit.py"
            "::test_parameters_fields_and_preprocessing_are_the_releases[t2t_vit_14_resnext]",
        ),
        "t2t_vit_14_resnext is the release's, of 32 heads",
    ),
    Break(
        "classifier_attends_without_its_norm",
        "vit_jax/models/classifier_vit.py",
        "self.attn(self.layer_norm_input(x), key=attn_key)",
        "self.attn(x, key=attn_key)",
        _golden("tiny_seed003"),
        "vit_classifier attends behind a norm of its input, and has one after it too",
    ),
    Break(
        "encoder_feed_forward_with_gelu",
        "vit_jax/layers/encoder_layer.py",
        "jax.nn.relu(self.linear1(x))",
        "jax.nn.gelu(self.linear1(x))",
        ("tests/parity/test_seeds.py::test_encoder_layer", *_golden("tiny_seed000_batch_first")),
        "vit_encoder is over torch.nn.TransformerEncoder with its default, ReLU",
    ),
    Break(
        "modular_head_without_its_norm",
        "vit_jax/models/modular_vit.py",
        "self.ln(tokens[:, 0]), pre_logits=pre_logits",
        "tokens[:, 0], pre_logits=pre_logits",
        (
            "tests/models/test_modular_vit.py::test_the_norm_takes_the_class_token_alone",
            *_golden("tiny_seed001_shared"),
        ),
        "vit_modular classifies the LayerNorm of the class token, as labml's",
    ),
]

# ------------------------------------------------------------------------------------------ layers

_DINOV3 = "tests/models/test_dinov3.py"
_CLIP = "tests/models/test_clip.py"
_SIGLIP = "tests/models/test_siglip.py"
_SEVERAL_SIZES = f"{_SIGLIP}::test_batches_of_images_of_several_sizes[Siglip2VisionModel]"

_TOWERS = [
    Break(
        "places_turned_the_other_way",
        "vit_jax/layers/rotary.py",
        "[first * cos - second * sin, second * cos + first * sin]",
        "[first * cos + second * sin, second * cos - first * sin]",
        (f"{_DINOV3} -k positions_drawn", f"{_DINOV3} -k other_sizes"),
        "DINOv3's queries and keys are turned as transformers turns them",
    ),
    Break(
        "frequencies_of_another_rounding",
        "vit_jax/layers/rotary.py",
        "return (np.float32(1) / periods.astype(np.float32)).astype(np.float64)",
        "return 1 / periods",
        (f"{_DINOV3} -k positions_drawn",),
        "a float64 DINOv3 has the float32 frequencies of transformers",
    ),
    Break(
        "keys_take_the_bias_of_the_queries",
        "vit_jax/layers/attention.py",
        "jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias])",
        "jnp.concatenate([q_bias, q_bias, v_bias])",
        (f"{_DINOV3} -k other_sizes",),
        "DINOv3's keys have no bias",
    ),
    Break(
        "axes_stretched_alike",
        "vit_jax/layers/rotary.py",
        "drawn(jitter_key, 2, math.log(jitter))",
        "drawn(jitter_key, 1, math.log(jitter))",
        (f"{_DINOV3} -k positions_drawn",),
        "rope_jitter stretches each axis by its own factor",
    ),
    Break(
        "two_biases_of_a_config_may_differ",
        "vit_jax/weights/huggingface.py",
        "known[field] != _value(dialect, key, stated):",
        "False:",
        (f"{_DINOV3} -k refused",),
        "a config.json that no model here fits is refused in one line",
    ),
    Break(
        "quick_gelu_of_a_rounded_factor",
        "vit_jax/layers/mlp.py",
        "x * jax.nn.sigmoid(1.702 * x)",
        "x * jax.nn.sigmoid(1.7 * x)",
        (f"{_CLIP} -k other_sizes",),
        "CLIP's QuickGELU is OpenAI's",
    ),
    Break(
        "norm_that_is_not_used_is_trained",
        "vit_jax/models/clip.py",
        "            freeze(self.norm)",
        "            pass",
        (f"{_CLIP}::test_what_is_not_used_is_not_trained",),
        "an optimizer leaves alone what a model does not use, as PyTorch's do",
    ),
    Break(
        "texts_left_out_in_silence",
        "vit_jax/weights/dialects.py",
        "if count := firsts.count(part):",
        "if count := 0:",
        (f"{_CLIP} -k whole_model",),
        "what of a file is left out is said",
    ),
    Break(
        "padding_is_attended_to",
        "vit_jax/layers/attention.py",
        "    if mask is None:",
        "    if True:",
        (_SEVERAL_SIZES,),
        "padded patches change nothing",
    ),
    Break(
        "gradients_of_the_lazy_softmax_by_its_exponentials",
        "vit_jax/layers/lazy_softmax.py",
        "    gradient = gradient / sums",
        "    gradient = gradient",
        (
            "tests/layers/test_attention_forms.py::test_other_forms_give_the_numbers_of_the_plain_one",
        ),
        "attention on a CPU has the gradients of the plain form",
    ),
    Break(
        "what_dropout_zeroed_has_a_gradient",
        "vit_jax/layers/lazy_softmax.py",
        "kept * of_kept - exponentials * along",
        "exponentials * (of_kept - along)",
        ("tests/layers/test_attention_forms.py -k biases_masks_and_dropout",),
        "attention on a CPU has the dropout of the plain form",
    ),
    Break(
        "positions_without_antialias",
        "vit_jax/models/siglip_naflex.py",
        "reach = jnp.maximum(step, 1)",
        "reach = jnp.ones_like(step)",
        (_SEVERAL_SIZES,),
        "positions of small images are resized with antialias",
    ),
    Break(
        "pooling_without_its_residual",
        "vit_jax/layers/attention_pool.py",
        "return (x + self.mlp(self.norm(x)))[:, 0]",
        "return self.mlp(self.norm(x))[:, 0]",
        (f"{_SIGLIP} -k other_sizes",),
        "SigLIP's pooled output is transformers'",
    ),
    Break(
        "gated_weights_do_not_say_so",
        "vit_jax/weights/hub.py",
        "if known is not None and known.is_gated:",
        "if known is None:",
        ("tests/weights/test_hub.py::test_gated_weights_say_so",),
        "weights that have to be asked for say so, and where",
    ),
    Break(
        "published_weights_under_another_name",
        "vit_jax/weights/load.py",
        "        name = known.name  # several names may have its sizes",
        "        pass",
        ("tests/weights/test_hub.py::test_published_weights_by_name",),
        "hf:REPO of the table has the name of the table",
    ),
]

_LAYERS = [
    Break(
        "norms_of_float32_in_one_pass",
        "vit_jax/layers/norm.py",
        "use_fast_variance=is_narrow",
        "use_fast_variance=True",
        ("tests/layers/test_norm.py",),
        "norms are exact where the mean is many deviations",
    ),
    Break(
        "patches_with_channels_last",
        "vit_jax/layers/unfold.py",
        "x = x.transpose(0, 1, 3, 5, 2, 4)",
        "x = x.transpose(0, 1, 3, 2, 4, 5)",
        ("tests/layers/test_unfold.py::test_patches_are_windows_side_by_side",),
        "the features of a patch are in PyTorch's order: channels, height, width",
    ),
    Break(
        "sinusoids_of_a_frequency_each",
        "vit_jax/layers/position.py",
        "even = 2 * (np.arange(dim) // 2)",
        "even = np.arange(dim)",
        ("tests/layers/test_position.py::test_sinusoid",),
        "a sine and a cosine of the table share their angle, bit by bit as the release's",
    ),
    Break(
        "stochastic_depth_of_single_elements",
        "vit_jax/layers/dropout.py",
        "(x.shape[0],) + (1,) * (x.ndim - 1)",
        "x.shape",
        ("tests/models/test_dropout.py::test_drop_path_drops_whole_examples_and_keeps_the_mean",),
        "stochastic depth drops a branch for whole examples",
    ),
    Break(
        "layers_share_a_dropout_key",
        "vit_jax/layers/stack.py",
        "return None if key is None else jax.random.fold_in(key, i)",
        "return key",
        ("tests/models/test_dropout.py::test_dropouts_of_a_call_are_independent",),
        "every layer drops units of its own",
    ),
    Break(
        "unfolded_kernel_lies_on_its_side",
        "vit_jax/layers/patch_embed.py",
        "kernel.transpose(2, 0, 1, 3)",
        "kernel.transpose(2, 1, 0, 3)",
        ("tests/parity/test_golden.py::test_im2col_equals_convolution[tiny_timm_vit]",),
        "patchify='conv' and 'unfold' are the same numbers",
    ),
]

# ------------------------------------------------------- positions of another size, another head

_ADAPTED = [
    Break(
        "timms_resize_with_torchs_other_cubic",
        "vit_jax/layers/position_resize.py",
        "_cubic(x, -0.5, to)",
        "_cubic(x, -0.75, to)",
        ("tests/layers/test_position_resize.py::test_as_torch",),
        "resize='timm' is torch's antialiased bicubic, a = -0.5",
    ),
    Break(
        "resized_positions_column_by_column",
        "vit_jax/layers/position_resize.py",
        "grid = grid.swapaxes(0, 1).reshape(-1, dim)",
        "grid = grid.reshape(-1, dim)",
        ("tests/layers/test_position_resize.py::test_as_torch",),
        "resized positions stand row by row",
    ),
    Break(
        "repeated_channels_without_their_factor",
        "vit_jax/weights/patch_channels.py",
        "channels.take(np.arange(new) % old, axis=axis) * (old / new)",
        "channels.take(np.arange(new) % old, axis=axis)",
        ("tests/weights/test_adapt.py::test_channels_as_timm",),
        "3 channels become n by timm's rule: repeated, times 3 / n",
    ),
    Break(
        "chosen_classes_in_rising_order",
        "vit_jax/weights/adapt.py",
        "state[entry] = array[classes]",
        "state[entry] = array[sorted(classes)]",
        ("tests/weights/test_adapt.py::test_a_subset_of_classes_gives_a_subset_of_the_logits",),
        "head=[...] chooses classes in the order in which they are given",
    ),
]

# ------------------------------------------------------------------------ names, dialects, formats

_FORMATS = [
    Break(
        "weights_of_another_number_of_heads",
        "vit_jax/weights/stated.py",
        "if not model.config.is_free(field) and own != _normalised(model.config, field, value):",
        "if False:",
        ("tests/weights/test_convert.py::test_fields_that_the_source_states",),
        "weights are refused by a model whose fields they contradict",
    ),
    Break(
        "a_description_of_a_later_version_is_read",
        "vit_jax/weights/spec_json.py",
        "if version > SPEC_VERSION:",
        "if version > SPEC_VERSION + 1:",
        ("tests/weights/test_formats.py::test_a_description_that_is_none",),
        "a file of a later version is refused, and the error says what to do",
    ),
    Break(
        "names_of_an_old_head_for_a_new_one",
        "vit_jax/models/base.py",
        "config=config, class_names=None)",
        "config=config)",
        ("tests/inference/test_load.py::test_overrides_adapt_the_weights",),
        "no class has a name that nothing gave it",
    ),
    Break(
        "old_checkpoints_forget_the_size_of_their_images",
        "vit_jax/weights/checkpoint_reading.py",
        '"resized_from": size',
        '"resized_from": None',
        ("tests/training/test_old_runs.py",),
        "runs of earlier versions predict as they did",
    ),
    Break(
        "a_users_model_takes_the_form_of_the_devices",
        "vit_jax/layers/forms.py",
        '    set_form(suited, platform or "", attention=attention)',
        '    set_form(model, platform or "", attention=attention)',
        ("tests/layers/test_forms.py",),
        "a model that a user calls computes in the plain form",
    ),
    Break(
        "state_dict_in_the_layout_of_flax",
        "vit_jax/weights/torch_layout.py",
        "np.moveaxis(array, (-1, -2), (0, 1))",
        "np.moveaxis(array, (-2, -1), (0, 1))",
        _golden("tiny_timm_vit"),
        "state_dict has the arrays in PyTorch's layout",
    ),
    Break(
        "keys_and_queries_written_for_each_other",
        "vit_jax/weights/dialects.py",
        "zip(parts, thirds, strict=True)",
        "zip(parts[::-1], thirds, strict=True)",
        ("tests/weights/test_dialects.py::test_google_there_and_back",),
        "weights written for Google's or Hugging Face's ViT compute the same there",
    ),
    Break(
        "googles_output_kernel_as_it_is",
        "vit_jax/weights/dialects.py",
        "_with_axes(name, array, 3).reshape(-1, array.shape[-1]).T",
        "_with_axes(name, array, 3).reshape(-1, array.shape[-1])",
        ("tests/weights/test_dialects.py::test_google_npz",),
        "Google's .npz weights give the model's own logits",
    ),
    Break(
        "first_weights_of_a_checkpoint_whatever_they_are",
        "vit_jax/weights/wrappers.py",
        "chosen = min(wanted, key=lambda place: place.is_ema)",
        "chosen = wanted[0]",
        ("tests/weights/test_wrappers.py::test_raw_weights_come_first_even_behind_averaged_ones",),
        "ema=None takes the raw weights of a training checkpoint that has both",
    ),
    Break(
        "fortran_order_is_not_heard",
        "vit_jax/weights/npz.py",
        'order="F" if header[2] == b"True" else "C"',
        'order="C"',
        ("tests/weights/test_formats.py::test_npz_arrays_of_every_kind",),
        "an .npz file's arrays come as NumPy reads them",
    ),
    Break(
        "further_names_of_tied_arrays_are_unexpected",
        "vit_jax/weights/state_dict.py",
        "name for entries in every.values() for e in entries for",
        "name for entries in every.values() for e in entries[:1] for",
        ("tests/weights/test_tied.py::test_aliases_are_accepted_where_they_are",),
        "tied arrays may stand in a state dict under any of their names",
    ),
    Break(
        "transposed_convolutions_are_not_flipped",
        "vit_jax/weights/torch_layout.py",
        "flipped = np.flip(array, tuple(range(array.ndim - 2)))",
        "flipped = array",
        ("tests/weights/test_torch_kinds.py::test_loads_computes_and_returns[ConvTranspose2d]",),
        "nnx.ConvTranspose has PyTorch's kernel flipped",
    ),
    Break(
        "running_variance_is_a_var",
        "vit_jax/weights/entries.py",
        "table = {**LEAVES, **STATISTICS} if is_statistic else LEAVES",
        "table = LEAVES",
        ("tests/weights/test_torch_kinds.py::test_loads_computes_and_returns[BatchNorm1d]",),
        "load_state_dict takes running statistics",
    ),
    Break(
        "another_index_is_taken_for_the_models",
        "vit_jax/weights/state_dict.py",
        "elif not np.array_equal(self._own(slot), array):",
        "elif False:",
        ("tests/weights/test_torch_kinds.py::test_another_index_is_refused",),
        "an index that the model has computed is compared with PyTorch's",
    ),
    Break(
        "buffers_of_floats_are_ignored",
        "vit_jax/weights/state_dict.py",
        "if strict and not is_free and",
        "if strict and not is_free and array.ndim < 1 and",
        ("tests/weights/test_torch_kinds.py::test_a_float_buffer_that_the_model_has_not_is_named",),
        "load_state_dict is strict",
    ),
    Break(
        "zeros_are_tied_to_zeros",
        "vit_jax/weights/state_dict.py",
        "if array.ndim < 2 or not is_real(array.dtype) or bool((array == array.flat[:1]).all()):",
        "if not is_real(array.dtype):",
        ("tests/weights/test_torch_kinds.py::test_zeros_are_tied_to_nothing",),
        "arrays that are equal by chance are not tied",
    ),
    Break(
        "the_second_of_tied_arrays_wins",
        "vit_jax/weights/state_dict.py",
        "elif found is None or not all(map(np.array_equal, first[1], found)):",
        "elif False:",
        ("tests/weights/test_torch_kinds.py::test_a_head_that_is_not_tied_is_named[Sharing]",),
        "a tied pair of unequal values is refused by name",
    ),
    Break(
        "queries_and_keys_joined_the_other_way",
        "vit_jax/weights/torch_layout.py",
        'JOINED = ("query", "key", "value")',
        'JOINED = ("key", "query", "value")',
        ("tests/weights/test_torch_kinds.py::test_loads_computes_and_returns[attention, joined]",),
        "nnx.MultiHeadAttention takes in_proj_weight",
    ),
    Break(
        "bilinear_and_bicubic_exchanged",
        "vit_jax/weights/huggingface.py",
        '{2: "bilinear", 3: "bicubic"}',
        '{2: "bicubic", 3: "bilinear"}',
        (
            "tests/weights/test_huggingface.py::test_forms_of_their_preprocessor_config",
            "tests/weights/test_huggingface.py::test_preprocessing_there_and_back",
        ),
        "a Hugging Face folder's preprocessing is read as it is meant",
    ),
    Break(
        "written_strides_the_wrong_way_round",
        "vit_jax/weights/torch_writer.py",
        "_tuple(*map(_integer, reversed(strides)))",
        "_tuple(*map(_integer, strides))",
        ("tests/weights/test_torch_file.py::test_torch_reads_what_is_written",),
        "torch.load reads from a written .pth what was written",
    ),
]

# ---------------------------------------------------------------------------------- hostile files

_HOSTILE = [
    Break(
        "zip_entries_may_overlap",
        "vit_jax/weights/torch_zip.py",
        "if entry.end > following.header:",
        "if entry.start > following.header:",
        ("tests/weights/test_torch_file_hostile.py::test_overlapping_entries",),
        "a zip file whose entries lie in each other, as in a bomb, is refused",
    ),
    Break(
        "tensor_reaches_one_past_its_storage",
        "vit_jax/weights/torch_tensors.py",
        "(last + 1) * dtype.itemsize > storage.nbytes",
        "last * dtype.itemsize > storage.nbytes",
        ("tests/weights/test_torch_file_hostile.py::test_tensors_that_lie",),
        "a tensor that reaches past its storage is a ValueError that says so",
    ),
    Break(
        "npz_may_unpack_to_a_terabyte",
        "vit_jax/weights/npz.py",
        "10 * packed + 2**28",
        "10 * packed + 2**40",
        ("tests/weights/test_formats.py::test_what_says_that_it_is_large_is_not_unpacked",),
        "an .npz file that would unpack to far more than it holds is refused",
    ),
    Break(
        "shards_may_lie_in_other_folders",
        "vit_jax/weights/formats.py",
        r'r"[\w.-]+\.safetensors"',
        r'r"[\w./-]+\.safetensors"',
        ("tests/weights/test_formats.py::test_shards_lie_in_the_folder",),
        "an index of shards cannot point out of its folder",
    ),
]

# -------------------------------------------------------------------------------------------- data

_DATA = [
    Break(
        "every_epoch_in_one_order",
        "vit_jax/data/order.py",
        "permutation(length, EPOCH_STREAM, seed, epoch)",
        "permutation(length, EPOCH_STREAM, seed, 0)",
        (
            "tests/data/test_loader.py"
            "::test_epochs_are_permutations_that_differ_and_drop_the_short_batch",
        ),
        "each epoch visits the images in an order of its own",
    ),
    Break(
        "hosts_evaluate_rows_of_each_other",
        "vit_jax/data/loader.py",
        "+ int(number) * self.batch_size",
        "+ int(number) * len(self.rows)",
        ("tests/data/test_loader.py::test_evaluation_sees_every_image_once_in_order",),
        "evaluation sees every image exactly once, divided between hosts too",
    ),
    Break(
        "repeats_of_an_image_share_their_crop",
        "vit_jax/data/loader.py",
        "index=int(indices[row])",
        "index=int(positions[row])",
        ("tests/data/test_loader.py::test_repeats_of_an_image_are_cropped_differently",),
        "repeated augmentation augments each repeat anew",
    ),
    Break(
        "decoding_turns_images_by_their_exif",
        "vit_jax/data/decode.py",
        "flags | cv2.IMREAD_IGNORE_ORIENTATION",
        "flags",
        ("tests/data/test_folder.py::test_training_sees_images_upright_as_prediction_does",),
        "training images decode to PIL's pixels, EXIF orientation applied once",
    ),
    Break(
        "crops_never_touch_the_lower_edge",
        "vit_jax/data/host_crop.py",
        "int(y * (height - rows + 1))",
        "int(y * (height - rows))",
        ("tests/data/test_host_crop.py::test_a_box_by_hand",),
        "a random crop stands at a place uniform among all that are possible",
    ),
    Break(
        "shrinking_without_antialiasing",
        "vit_jax/data/host_crop.py",
        "kernel = Image.Resampling[interpolation.upper()]",
        "kernel = Image.Resampling.NEAREST",
        ("tests/data/test_host_crop.py::test_a_crop_is_cut_and_then_resized_by_pillow",),
        "resizing on the host is antialiased, by PIL",
    ),
    Break(
        "solarize_spares_the_threshold",
        "vit_jax/data/tables.py",
        "_bytes().astype(jnp.int32) < threshold",
        "_bytes().astype(jnp.int32) <= threshold",
        ("tests/data/test_tables.py::test_tables_without_an_image_are_pils",),
        "RandAugment's operations have PIL's pixels",
    ),
    Break(
        "erased_rectangles_of_two_fifths",
        "vit_jax/data/erasing.py",
        "_AREA = (0.02, 1 / 3)",
        "_AREA = (0.02, 0.4)",
        (
            "tests/data/test_erasing.py"
            "::test_regions_have_the_distribution_of_the_sampling_written_out",
        ),
        "random erasing takes 2% to a third of the image, as timm's",
    ),
    Break(
        "percentages_are_cut_off",
        "vit_jax/data/splits.py",
        "round(number * length / 100)",
        "int(number * length / 100)",
        ("tests/data/test_splits.py::test_expressions_select_what_tfds_selects",),
        "a split expression takes the examples that it takes in TFDS",
    ),
    Break(
        "a_label_may_be_one_too_large",
        "vit_jax/data/tfds_source.py",
        "if not 0 <= label < self.num_classes:",
        "if not 0 <= label <= self.num_classes:",
        ("tests/data/test_tfds_source.py::test_label_outside_the_classes_is_named",),
        "a label outside of the set's classes is an error that names the image",
    ),
    Break(
        "cutmix_labels_of_the_whole_box",
        "vit_jax/training/mixing.py",
        "cutmix_share = 1 - cut.mean(dtype=jnp.float32)",
        "cutmix_share = symmetric_beta(cutmix_key, mixing.cutmix_alpha)",
        ("tests/training/test_mixing.py::test_switching_and_leaving_alone",),
        "CutMix mixes labels by the pixels that are shown, also where the box is cut off",
    ),
]

# ---------------------------------------------------------------------------------------- training

_TRAINING = [
    Break(
        "resumed_data_begin_anew",
        "vit_jax/training/run.py",
        "start_step=start_step,",
        "start_step=0,",
        (_LOOP_SIGNAL,),
        "a resumed run sees the images that the run would have seen next",
    ),
    Break(
        "fingerprint_without_places",
        "vit_jax/weights/fingerprint.py",
        "((place + 1) * jnp.uint32(_AXES[axis % len(_AXES)] + 2 * axis))",
        "jnp.uint32(_AXES[axis % len(_AXES)] + 2 * axis)",
        ("tests/weights/test_fingerprint.py::test_places_count",),
        "a checkpoint whose values have changed places is known to be damaged",
    ),
    Break(
        "one_checkpoint_fewer_is_kept",
        "vit_jax/training/checkpoint.py",
        "place >= latest or",
        "place > latest or",
        ("tests/training/test_checkpoint.py::test_latest_and_best_stay",),
        "the latest checkpoint.keep checkpoints stay",
    ),
    Break(
        "lamb_decays_biases",
        "vit_jax/training/optimizer.py",
        "optax.add_decayed_weights(decay, mask),",
        "optax.add_decayed_weights(decay),",
        ("tests/training/test_optimizer.py::test_decay_spares_what_is_no_matrix_under_every_rule",),
        "decay_mask='matrices' spares biases and norms under every rule",
    ),
    Break(
        "cooldown_after_the_end",
        "vit_jax/training/schedules.py",
        "- warmup_steps - cooldown_steps, 1)",
        "- warmup_steps, 1)",
        (
            "tests/training/test_schedules.py"
            "::test_cooldown_is_at_the_minimum_and_takes_from_the_fall",
        ),
        "the last cooldown_epochs are at min_learning_rate",
    ),
    Break(
        "freezing_block_1_freezes_block_10",
        "vit_jax/training/param_groups.py",
        'name.startswith(f"{pattern}.")',
        "name.startswith(pattern)",
        ("tests/training/test_param_groups.py::test_parts_are_frozen_by_beginnings_and_globs",),
        "optimizer.frozen takes beginnings of names up to a dot",
    ),
    Break(
        "average_of_the_weights_before_the_update",
        "vit_jax/training/step.py",
        "update_average(run.config.ema, state.ema, params, step)",
        "update_average(run.config.ema, state.ema, state.params, step)",
        (
            "tests/training/test_ema.py"
            "::test_the_steps_average_is_that_of_the_parameters_after_each_update",
        ),
        "the average is of the weights after each update",
    ),
    Break(
        "soft_distillation_by_one_temperature",
        "vit_jax/training/distillation.py",
        "return temperature**2 * (",
        "return temperature * (",
        ("tests/training/test_distillation.py::test_loss_and_gradients_are_pytorchs",),
        "soft distillation is T^2 times the divergence, equation 2 of DeiT",
    ),
    Break(
        "parts_of_a_batch_drop_the_same_units",
        "vit_jax/training/step.py",
        "key_of_rows(dropout_key, first + number, rows, parts)",
        "key_of_rows(dropout_key, first, rows, parts)",
        (f"{_LAYOUTS}[vit-dropout-pmap-2-parts]",),
        "accumulation_steps does not change the run but for rounding",
    ),
    Break(
        "smallest_axis_is_divided",
        "vit_jax/training/mesh.py",
        "largest = max(divisible, key=",
        "largest = min(divisible, key=",
        ("tests/training/test_mesh.py::test_largest_divisible_axis_is_divided",),
        "fsdp divides the largest axis that it can",
    ),
    Break(
        "devices_of_pmap_drop_rows_of_each_other",
        "vit_jax/training/step.py",
        "rows * jax.lax.axis_index(axis)",
        "jax.lax.axis_index(axis)",
        (f"{_LAYOUTS}[vit-dropout-pmap-2-parts]",),
        "parallel='pmap' is the run of 'jit'",
    ),
    Break(
        "padding_adds_to_the_loss",
        "vit_jax/training/metrics.py",
        "loss=jnp.where(mask, losses, 0).sum()",
        "loss=losses.sum()",
        ("tests/training/test_metrics.py::test_padding_does_not_count_even_if_it_is_nan",),
        "what fills up the last batch of an evaluation does not count",
    ),
    Break(
        "dispatch_goes_past_a_checkpoint",
        "vit_jax/training/loop.py",
        "every = [config.log.every_steps, config.checkpoint.every_steps]",
        "every = [config.log.every_steps]",
        (
            f"{_DISPATCH}::test_rows_and_checkpoints_stand_where_they_stand_with_steps_by_themselves",
        ),
        "checkpoints are of the same steps with several updates a dispatch",
    ),
    Break(
        "data_that_fail_lose_the_dispatch",
        "vit_jax/training/loop.py",
        "if found and jax.process_count() == 1:",
        "if not found and jax.process_count() == 1:",
        (f"{_DISPATCH}::test_what_ends_a_dispatch_early_loses_no_update",),
        "an image that cannot be read ends the run and loses no update before it",
    ),
    Break(
        "repeats_of_an_image_on_the_device_are_another",
        "vit_jax/training/resident.py",
        "found = of[index % len(of)]",
        "found = of[index]",
        (f"{_DISPATCH}::test_padding_and_repeats_are_found_by_their_index",),
        "images that live on the devices are those that the loader would have sent",
    ),
    Break(
        "checkpoint_of_parameters_that_are_not_finite",
        "vit_jax/training/loop.py",
        "if not bad and not self.run",
        "if bad and not self.run",
        ("tests/training/test_loop.py::test_parameters_that_are_not_finite_are_in_no_checkpoint",),
        "no checkpoint holds a parameter that is not finite",
    ),
    Break(
        "stopped_run_ends_with_another_status",
        "vit_jax/training/interrupt.py",
        "super().__init__(128 + signal_number)",
        "super().__init__(signal_number)",
        (_LOOP_SIGNAL,),
        "SIGTERM, SIGHUP and Ctrl-C end a run with status 143, 129 and 130",
    ),
    Break(
        "row_of_the_checkpoint_is_cut_away",
        "vit_jax/training/records.py",
        'row["step"] <= step',
        'row["step"] < step',
        ("tests/training/test_records.py::test_cut_back_keeps_rows_up_to_the_step",),
        "metrics.jsonl of a resumed run has every row once",
    ),
]

# ---------------------------------------------------------------------- config and the command line

_CONFIG = [
    Break(
        "a_learning_rate_of_zero_is_valid",
        "vit_jax/config/validate.py",
        "value > limits.above",
        "value >= limits.above",
        ("tests/config/test_validate.py::test_a_bad_value_names_field_wish_and_value",),
        "a field out of its range is refused before anything is built",
    ),
    Break(
        "another_model_forgets_the_number_of_classes",
        "vit_jax/config/overrides.py",
        '("img_size", "in_chans", "num_classes")',
        '("img_size", "in_chans")',
        (
            "tests/config/test_overrides.py"
            "::test_another_model_with_its_own_fields_keeps_what_tells_of_the_data",
        ),
        "--config.model.name keeps the recipe's fields that tell of the data",
    ),
    Break(
        "stored_config_holds_lists",
        "vit_jax/config/serialize.py",
        "else _tuples(value)",
        "else value",
        ("tests/config/test_serialize.py::test_json_round_trip_gives_the_same_config",),
        "config.json gives the config back, and a run with it can be resumed",
    ),
    Break(
        "t2t_19_with_the_decay_of_14",
        "configs/imagenet_t2t_vit.py",
        '"t_24"), (5e-4, 0.065)',
        '"t_24"), (5e-4, 0.05)',
        ("tests/config/test_recipes.py::test_imagenet_t2t_has_the_numbers_of_the_release",),
        "the T2T recipes have the numbers of the release",
    ),
    Break(
        "unread_images_are_a_success",
        "vit_jax/cli/predict.py",
        "return 1 if unread else 0",
        "return 0",
        ("tests/inference/test_predict.py::test_command_names_and_skips_what_is_broken",),
        "`vit-jax predict` ends with status 1 where an image could not be read",
    ),
    Break(
        "mistakes_end_with_status_1",
        "vit_jax/cli/errors.py",
        "MISTAKE, BUG = 2, 70",
        "MISTAKE, BUG = 1, 70",
        (
            "tests/cli/test_cli.py::test_how_a_command_ends_that_does_not_return",
            "tests/cli/test_cli.py::test_a_mistake_is_status_2_and_one_line",
        ),
        "a mistake of the user's is one line and status 2",
    ),
]

# --------------------------------------------------------------------------------------- inference

_INFERENCE = [
    Break(
        "photos_in_more_detail_than_the_data",
        "vit_jax/inference/preprocess.py",
        "return preprocessing_of(model).resized_from or model.input_size",
        "return model.input_size",
        ("tests/inference/test_predict.py::test_other_sizes_go_through_the_size_of_the_data",),
        "prediction prepares images as the training's evaluation did",
    ),
    Break(
        "confusion_on_its_side",
        "vit_jax/inference/evaluate.py",
        "self.labels * size + self.predictions",
        "self.predictions * size + self.labels",
        ("tests/inference/test_evaluate.py::test_confusion_is_sklearns",),
        "rows of the confusion matrix are true classes",
    ),
    Break(
        "rollout_in_reverse",
        "vit_jax/inspect/attention.py",
        'jnp.matmul(mixed, rollout, precision="highest")',
        'jnp.matmul(rollout, mixed, precision="highest")',
        ("tests/inference/test_attention.py::test_fusion_residual_and_discarding_by_hand",),
        "attention rollout multiplies the blocks, the last leftmost, as its paper",
    ),
    Break(
        "temperature_the_wrong_way_round",
        "vit_jax/inference/probe.py",
        "jax.nn.softmax(nearest / temperature, axis=-1)",
        "jax.nn.softmax(nearest * temperature, axis=-1)",
        (
            "tests/inference/test_probe.py"
            "::test_neighbours_vote_as_by_hand_whatever_is_compared_at_a_time",
        ),
        "a neighbour's vote weighs exp(similarity / temperature), as DINO's",
    ),
    Break(
        "export_is_checked_a_hundred_times_less",
        "vit_jax/inference/export.py",
        '"float32": 1e-6',
        '"float32": 1e-4',
        ("tests/inference/test_export.py::test_what_differs_is_not_written",),
        "an exported program that differs from the live model is not written",
    ),
    Break(
        "activations_in_elements",
        "vit_jax/inspect/summary.py",
        "aval.size * aval.dtype.itemsize",
        "aval.size",
        ("tests/inference/test_summary.py::test_activations_are_what_a_backward_pass_keeps",),
        "`vit-jax summary` tells activations in bytes",
    ),
]

# ------------------------------------------------------------------------- parity, as it is a tool

_PARITY = [
    Break(
        "float64_may_differ_by_a_ten_thousandth",
        "vit_jax/parity/forward.py",
        "_FLOAT64 = 1e-12",
        "_FLOAT64 = 1e-4",
        (_fault("epsilon_of_t2t vit"),),
        "in float64 all beyond 1e-12 of the rms is told",
    ),
    Break(
        "linens_own_dtype_stays",
        "vit_jax/parity/linen.py",
        "if not isinstance(self.dtype, str):",
        "if False:",
        ("tests/parity/test_any_port.py::test_linens_own_dtype_follows_the_precision",),
        "a Linen module with a dtype is compared in float64",
    ),
    Break(
        "loading_changes_the_port_itself",
        "vit_jax/parity/ported.py",
        "copy = nnx.clone(self)  # not of the same variables",
        "copy = self  # not of the same variables",
        ("tests/parity/test_any_port.py::test_loading_leaves_the_port_as_it_is",),
        "load returns another port",
    ),
    Break(
        "bfloat16_beside_float32s_noise",
        "vit_jax/parity/compare.py",
        "judged = reference if precision in _DEFAULT else _in_type(precision, reference)",
        "judged = reference",
        ("tests/parity/test_narrow.py::test_a_correct_port_agrees[bfloat16]",),
        "bfloat16 is held against PyTorch's own bfloat16",
    ),
    Break(
        "linens_statistics_are_not_kept",
        "vit_jax/parity/linen.py",
        "getattr(part, leaf).set_value(tree)",
        "del tree",
        ("tests/parity/test_modes_ported.py::test_the_running_statistics_are_compared[linen]",),
        "a Linen module's running statistics are compared",
    ),
    Break(
        "equinoxs_dropout_drops_in_train_mode",
        "vit_jax/parity/equinox.py",
        "if is_still or (is_off",
        "if (is_off",
        ("tests/parity/test_modes_ported.py::test_the_running_statistics_are_compared[equinox]",),
        "dropout is left out of a comparison in train mode",
    ),
    Break(
        "named_values_pass_unseen",
        "vit_jax/inspect/recorder.py",
        "return self._pass(Event(stage, frame, None, stage), value)",
        "return value",
        ("tests/parity/test_named_values.py::test_of_a_function[rematerialised]",),
        "values named by checkpoint_name are stages",
    ),
    Break(
        "two_modules_of_one_name_are_one",
        "vit_jax/parity/torch_trace.py",
        "_stage_names(run.stages, rename_path, names is not None)",
        "_stage_names(run.stages, rename_path, False)",
        ("tests/parity/test_any_port.py::test_two_modules_of_one_name_are_compared_in_order",),
        "of two stages of one name both are compared",
    ),
    Break(
        "inputs_by_keyword_have_no_gradient",
        "vit_jax/parity/run.py",
        "for name, expected in reference.input_gradients.items():",
        "for name, expected in dict[str, Expected]().items():",
        ("tests/parity/test_any_port.py::test_a_gradient_of_one_input_is_told",),
        "the gradient of each input is compared",
    ),
    Break(
        "heads_without_a_name_are_one",
        "vit_jax/parity/forms/attributes.py",
        "yield from (n for n in range(1, min(width, _MOST_HEADS) + 1) if width % n == 0)",
        "yield 1",
        (
            "tests/parity/test_any_port.py::"
            "test_a_fault_of_an_attention_is_named_whatever_its_attributes",
        ),
        "the number of heads is found where no attribute has it",
    ),
    Break(
        "arrays_decide_on_a_kind_in_silence",
        "vit_jax/parity/linen.py",
        "if kind and part.collections and",
        "if not kind and part.collections and",
        ("tests/parity/test_any_port.py::test_kinds_of_linen",),
        "a layout that the arrays do not tell is asked for",
    ),
    Break(
        "groups_of_a_transposed_convolution_are_one",
        "vit_jax/parity/equinox.py",
        "groups = module.groups",
        "groups = 1",
        ("tests/parity/test_any_port.py::test_kinds_of_equinox",),
        "Equinox's grouped transposed convolution takes PyTorch's weights",
    ),
    Break(
        "backward_faults_are_sought_from_the_images",
        "vit_jax/parity/run.py",
        "-index if is_backward else index,",
        "index,",
        (_fault("derivative_of_the_tanh_form vit"),),
        "a wrong derivative is placed in the module nearest to the loss",
    ),
    Break(
        "explained_weights_are_not_put_right",
        "vit_jax/parity/diagnose.py",
        "mended = Forward(run.reference, side).run",
        "mended = Forward(run.reference, run.side).run",
        (_fault("transposed_kernel vit"),),
        "a diagnosis says whether nothing else departs once the fault is out",
    ),
    Break(
        "golden_input_is_not_checked",
        "vit_jax/parity/golden.py",
        'if digest([images]) != source["sha256"]:',
        'if not source["sha256"]:',
        ("tests/parity/test_golden_files.py::test_damaged_files[another input]",),
        "a golden file whose input was changed is refused",
    ),
    Break(
        "golden_stages_without_noise",
        "vit_jax/parity/golden.py",
        'float(entry["f32_max_abs"])',
        "0.0",
        ("tests/parity/test_golden_files.py::test_noise_of_a_fixture",),
        "a float32 tolerance is PyTorch's own measured noise",
    ),
]

# ---------------------------------------------------------------------------------- plan and plots

_PLAN = [
    Break(
        "multiplications_without_their_additions",
        "vit_jax/plan/flops.py",
        "return 2 * dot.shapes[0].size",
        "return dot.shapes[0].size",
        ("tests/plan/test_counts.py::test_a_compiled_model_computes_what_is_counted_by_shapes",),
        "`vit-jax plan` counts a multiplication and its addition as two operations",
    ),
    Break(
        "all_reduce_in_one_round",
        "vit_jax/plan/collectives.py",
        '"all-reduce": 2 * others',
        '"all-reduce": others',
        ("tests/plan/test_counts.py::test_a_ring_sends_the_least",),
        "an all-reduce sends at least what a ring does: twice the others' share",
    ),
    Break(
        "half_a_chip_with_the_peak_of_all",
        "vit_jax/plan/roofline.py",
        "peak = chip.peak_flops / chip.devices",
        "peak = chip.peak_flops",
        ("tests/plan/test_roofline.py::test_a_device_of_tpu7x_is_half_a_chip",),
        "a device that is half a chip has half of its peak",
    ),
    Break(
        "legend_tells_the_first_value",
        "vit_jax/plots/curves.py",
        "last = chosen[-1][metric]",
        "last = chosen[0][metric]",
        ("tests/plots/test_curves.py::test_both_pictures",),
        "the legend of a run's curves has the last values",
    ),
    Break(
        "positions_compared_with_their_lengths",
        "vit_jax/inspect/embeddings.py",
        "unit = table / np.where(norms > 0, norms, 1)",
        "unit = table",
        ("tests/plots/test_of_models.py::test_positions_are_those_that_the_model_adds",),
        "the picture of positions shows cosines",
    ),
]

BREAKS: list[Break] = [
    *_NUMBERS,
    *_TOWERS,
    *_LAYERS,
    *_ADAPTED,
    *_FORMATS,
    *_HOSTILE,
    *_DATA,
    *_TRAINING,
    *_CONFIG,
    *_INFERENCE,
    *_PARITY,
    *_PLAN,
]
