# Makes the target forge_python: the module forge_optim._C of FORGE_TORCH_PYTHON, and around it the package as a
# folder of links, so that PYTHONPATH=<build>/python gives what the wheel will hold.

set(Python_EXECUTABLE "${FORGE_TORCH_PYTHON}")
find_package(Python 3.11 COMPONENTS Interpreter Development.Module)
if(NOT Python_Development.Module_FOUND)
  set(_problem "forge: ${FORGE_TORCH_PYTHON} has no headers (Debian, Ubuntu: `apt install \
python${Python_VERSION_MAJOR}.${Python_VERSION_MINOR}-dev`)")
  if(FORGE_PACKAGE_ONLY)
    message(FATAL_ERROR "${_problem}")
  endif()
  message(STATUS "${_problem}; building without the Python package")
  return()
endif()

add_library(torch_python SHARED IMPORTED)
set_target_properties(torch_python PROPERTIES IMPORTED_LOCATION "${FORGE_TORCH_LIB}/libtorch_python.so")

set(package "${CMAKE_BINARY_DIR}/python/forge_optim")
forge_sources(binding_sources python/bindings)
python_add_library(forge_python MODULE WITH_SOABI ${binding_sources})
forge_batches(forge_python)
# pybind11 is the one in torch's own headers: with another, at::Tensor could not pass between the two modules.
target_link_libraries(forge_python PRIVATE forge_torch torch_python)
# Loaded as it will be when installed: our library beside it, torch's in the process by `import torch`.
set_target_properties(forge_python PROPERTIES
  OUTPUT_NAME _C
  LIBRARY_OUTPUT_DIRECTORY "${package}"
  CXX_VISIBILITY_PRESET hidden
  INSTALL_RPATH "$ORIGIN"
  BUILD_WITH_INSTALL_RPATH ON)

# Afresh each time, so that no link outlives its source.
file(GLOB_RECURSE stale "${package}/*.py")
foreach(file IN LISTS stale)
  file(REMOVE "${file}")
endforeach()
file(GLOB_RECURSE linked RELATIVE "${PROJECT_SOURCE_DIR}/python" CONFIGURE_DEPENDS
     python/forge_optim/*.py python/forge_optim/py.typed)
foreach(file IN LISTS linked)
  cmake_path(GET file PARENT_PATH folder)
  file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/python/${folder}")
  file(CREATE_LINK "${PROJECT_SOURCE_DIR}/python/${file}" "${CMAKE_BINARY_DIR}/python/${file}" SYMBOLIC)
endforeach()
set(library "${CMAKE_SHARED_LIBRARY_PREFIX}forge_torch${CMAKE_SHARED_LIBRARY_SUFFIX}")
file(CREATE_LINK "${CMAKE_BINARY_DIR}/${library}" "${package}/${library}" SYMBOLIC)

# What a rule of one's own includes (forge_optim.load_rule), its library's folder beside it.
set(rule_headers base rules formats gradient kernels)
foreach(folder IN LISTS rule_headers)
  file(MAKE_DIRECTORY "${package}/include/forge")
  file(CREATE_LINK "${PROJECT_SOURCE_DIR}/forge/${folder}" "${package}/include/forge/${folder}" SYMBOLIC)
  install(DIRECTORY "forge/${folder}" DESTINATION forge_optim/include/forge COMPONENT package
          FILES_MATCHING PATTERN "*.h" PATTERN testing EXCLUDE)
endforeach()

# The wheel's compiled half; its .py files are taken from the source tree (pyproject.toml).
install(TARGETS forge_torch forge_python LIBRARY DESTINATION forge_optim COMPONENT package)
